"""The U-Net: an image network that sees the whole at low resolution and detail at full.

Levels go down in size by halves and up again. On the way up each block also sees what the block
of the same level saw on the way down; at the lowest levels every pixel attends to every other.

The last layer starts at zero, and so does the output: with `Velocity` the reverse kernel then
starts with the mean of the forward one.

References:
    Ronneberger et al. 2015; Ho et al. 2020, appendix B; Dhariwal and Nichol 2021, section 3.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks.arguments import (
    check_flag,
    check_instance,
    check_key,
    check_shape,
    check_size,
    described,
)
from .layers.convolution import (
    Convolution,
    from_patches,
    num_sizes,
    pool,
    to_patches,
    upsample,
    zeroed,
)
from .layers.embedding import Embedding
from .layers.layout import ImageLayout
from .layers.padding import AbstractPadding, Zeros
from .layers.unet_blocks import GroupNorm, ResidualBlock
from .wrappers import Rematerialised

Block = ResidualBlock | Rematerialised


@final
class UNet(eqx.Module):
    """The network for images of today's diffusion models; for signals and volumes, too.

    Any size will do: where a level has an odd number of pixels, its last one counts twice on the
    way down.

    Args:
        event_shape: shape of one datum.
        channels: at each level, from full size down; each level has half the pixels per axis of
            the one above.
        num_blocks: residual blocks per level, on the way down and again on the way up.
        key: for the initial weights.
        channel_axis: which axis of the event is the channels, as 0 or -1; None if there are none,
            as in (28, 28).
        output_shape: shape of the raw output, by default `event_shape`. A learned variance needs
            `(2, *event_shape)`; categories need `(*event_shape, K)`.
        context_shape: shape of the context of one event, if it is numbers.
        num_classes: number of labels, if the context is one, of shape (). A label of -1 is no
            class.
        num_categories: for categories, the number of states of the chain, which are then
            one-hot encoded: K, or K + 1 with an absorbing base.
        attention_levels: at how many of the lowest levels pixels attend to one another. Its cost
            grows with the square of their number.
        num_heads: of the attention.
        padding: what lies beyond the edges; `padding.Periodic()` for a lattice that is a torus.
        patch: side of the squares of pixels that count as one pixel of as many channels. With 2 the
            first level works at half the size, at a quarter of the cost; it divides every size.
        rematerialise: whether blocks are computed again for the gradient instead of kept: less
            memory, and about a third more time.

    Raises:
        ValueError: a shape or a size that is none, or does not go with the others.

    Example:
        >>> network = dp.networks.UNet(
        ...     event_shape=(32, 32, 3), channels=(64, 128, 128), channel_axis=-1, key=key
        ... )
    """

    layout: ImageLayout
    embedding: Embedding
    first: Convolution
    down: tuple[tuple[Block, ...], ...]
    middle: tuple[Block, ...]
    up: tuple[tuple[Block, ...], ...]
    norm: GroupNorm
    last: Convolution
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (32, 64),
        num_blocks: int = 1,
        *,
        key: Array,
        channel_axis: int | None = None,
        output_shape: tuple[int, ...] | None = None,
        context_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        num_categories: int | None = None,
        attention_levels: int = 1,
        num_heads: int = 4,
        padding: AbstractPadding = Zeros(),  # noqa: B008 (immutable)
        patch: int = 1,
        rematerialise: bool = False,
    ) -> None:
        key = check_key(key)
        self.layout = ImageLayout(event_shape, channel_axis, output_shape, num_categories)
        self.patch = check_size("patch", patch)
        num_axes = len(self.layout.space)
        channels = _check_channels(channels, _patched(self.layout.space, self.patch))
        num_blocks = check_size("num_blocks", num_blocks)
        attention_levels = check_size("attention_levels", attention_levels, least=0)
        check_instance("padding", padding, AbstractPadding)
        check_flag("rematerialise", rematerialise)
        attends = [level >= len(channels) - attention_levels for level in range(len(channels))]
        num_heads = check_size("num_heads", num_heads)
        for level, size in enumerate(channels):
            if attends[level] and size % num_heads:
                raise ValueError(
                    f"num_heads={num_heads} must divide the channels of the levels that attend, "
                    f"but channels={channels} has {size} among them."
                )

        width = 4 * channels[0]
        keys = iter(jax.random.split(key, 2 * num_blocks * len(channels) + 5))

        def block(inputs: int, level: int, *, attend: bool) -> Block:
            heads = num_heads if attend else 0
            made = ResidualBlock(
                inputs, channels[level], num_axes, width, heads, key=next(keys), padding=padding
            )
            return Rematerialised(made) if rematerialise else made

        def level_down(level: int) -> tuple[Block, ...]:
            above = channels[max(level - 1, 0)]
            inputs = [above] + [channels[level]] * (num_blocks - 1)
            return tuple(block(size, level, attend=attends[level]) for size in inputs)

        def level_up(level: int) -> tuple[Block, ...]:
            below = channels[min(level + 1, len(channels) - 1)]
            inputs = [below] + [channels[level]] * (num_blocks - 1)
            sizes = [size + channels[level] for size in inputs]
            return tuple(block(size, level, attend=attends[level]) for size in sizes)

        self.embedding = Embedding(
            width, key=next(keys), context_shape=context_shape, num_classes=num_classes
        )
        inputs, outputs = (
            n * self.patch**num_axes for n in (self.layout.inputs, self.layout.outputs)
        )
        self.first = Convolution(inputs, channels[0], num_axes, key=next(keys), padding=padding)
        lowest = len(channels) - 1
        self.down = tuple(level_down(level) for level in range(len(channels)))
        self.middle = tuple(
            block(channels[-1], lowest, attend=attend and attends[-1]) for attend in (True, False)
        )
        self.up = tuple(level_up(level) for level in range(len(channels)))
        self.norm = GroupNorm(channels[0])
        last = Convolution(channels[0], outputs, num_axes, key=next(keys), padding=padding)
        self.last = zeroed(last)

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """The raw output for one event."""
        condition = self.embedding(t, context)
        image = self.layout.to_image(x_t, self.first.weight.dtype)
        h = self.first(to_patches(image, self.patch))
        seen = []
        for level, blocks in enumerate(self.down):
            h = h if level == 0 else pool(h, 2)
            for block in blocks:
                h = block(h, condition)
                seen.append(h)
        for block in self.middle:
            h = block(h, condition)
        for blocks in reversed(self.up):
            space = seen[-1].shape[:-1]
            h = h if h.shape[:-1] == space else upsample(h, 2, space)
            for block in blocks:
                h = block(jnp.concatenate([h, seen.pop()], axis=-1), condition)
        y = self.last(jax.nn.silu(self.norm(h)))
        return self.layout.from_image(from_patches(y, self.patch))

    def resized(self, event_shape: tuple[int, ...]) -> "UNet":
        """The same weights for events of another size, such as a texture larger than its windows.

        Convolutions see as far as they did, and no further; attention and the means of group norms
        reach over the whole event, so leave the attention out (`attention_levels=0`) where sizes
        are to change.

        Args:
            event_shape: with as many axes as before, and as many channels.

        Raises:
            ValueError: anything else, or fewer pixels than there are levels for.
        """
        layout = self.layout.resized(event_shape)
        _check_levels("the network", len(self.up), _patched(layout.space, self.patch))
        return eqx.tree_at(lambda network: network.layout, self, layout)


def _patched(space: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Patches along each axis."""
    if any(n % patch for n in space):
        raise ValueError(f"patch={patch} must divide the pixels of every axis, which are {space}.")
    return tuple(n // patch for n in space)


def _check_channels(channels: Any, space: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse what are no channels, and more levels than there are halves."""
    sizes = check_shape("channels", channels)
    if not sizes:
        raise ValueError("channels=() must have one number for each level, such as (32, 64).")
    _check_levels(f"channels={described(channels)}", len(sizes), space)
    return sizes


def _check_levels(what: str, num: int, space: tuple[int, ...]) -> None:
    most = num_sizes(space)
    if num > most:
        raise ValueError(
            f"{what} has {num} levels, but {max(space)} pixels can be halved {most - 1} times "
            f"only: give at most {most}."
        )
