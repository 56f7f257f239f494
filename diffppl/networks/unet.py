"""The U-Net: a convolutional network over several resolutions, with skip connections.

Each level halves the resolution on the way down and doubles it on the way up. On the way up each
block also receives the output of its counterpart on the way down; at the lowest levels every pixel
attends to every other.

The last layer is initialised at zero, and so is the output: with `Velocity` the initial reverse
kernel has the mean of the forward kernel.

References:
    Ronneberger et al. 2015; Ho et al. 2020, appendix B; Dhariwal and Nichol 2021, section 3.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks.arguments import (
    Time,
    check_flag,
    check_instance,
    check_key,
    check_shape,
    check_size,
    described,
)
from .layers.convolution import (
    Convolution,
    check_resolutions,
    from_patches,
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
    """A U-Net for images, signals and volumes.

    Any size is supported: downsampling an axis with an odd number of pixels repeats the last one.

    Args:
        event_shape: shape of one datum.
        channels: at each level, from full size down; each level has half the pixels per axis of
            the one above.
        num_blocks: residual blocks per level, on the way down and again on the way up.
        key: for the initial weights.
        channel_axis: the channel axis of the event, such as 0 or -1; None if there is none, as in
            (28, 28).
        output_shape: shape of the raw output, by default `event_shape`. A learned variance needs
            `(2, *event_shape)`; categories need `(*event_shape, K)`.
        context_shape: shape of the context of one event, if it is numeric.
        num_classes: number of classes, if the context is a label, of shape (). A label of -1 means
            no class.
        num_categories: for categories, the number of states of the chain, which are one-hot
            encoded: K, or K + 1 with an absorbing base.
        attention_levels: number of lowest levels with self-attention. Its cost is quadratic in
            the number of pixels.
        num_heads: attention heads.
        padding: values beyond the edges; `padding.Periodic()` for a lattice on a torus.
        patch: side of the blocks of pixels that are merged into the channels of one pixel. With 2
            the first level works at half the size, at a quarter of the cost; it must divide every
            spatial size.
        rematerialise: whether blocks are recomputed in the backward pass instead of stored: less
            memory, and about a third more time.

    Raises:
        ValueError: an invalid shape or size, or inconsistent ones.

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
        padding: AbstractPadding = Zeros(),
        patch: int = 1,
        rematerialise: bool = False,
    ) -> None:
        key = check_key(key)
        self.layout = ImageLayout(event_shape, channel_axis, output_shape, num_categories)
        self.patch = check_size("patch", patch)
        num_axes = len(self.layout.space)
        channels = _check_channels(channels, _num_patches(self.layout.space, self.patch))
        num_blocks = check_size("num_blocks", num_blocks)
        attention_levels = check_size("attention_levels", attention_levels, least=0)
        check_instance("padding", padding, AbstractPadding)
        check_flag("rematerialise", rematerialise)
        heads = _heads(channels, attention_levels, check_size("num_heads", num_heads))

        width = 4 * channels[0]  # of the conditioning vector
        # One key per block on the way down and up; two middle blocks, embedding, first, last.
        keys = iter(jax.random.split(key, 2 * num_blocks * len(channels) + 5))

        def block(inputs: int, level: int, num_heads: int) -> Block:
            outputs = channels[level]
            residual = ResidualBlock(
                inputs, outputs, num_axes, width, num_heads, key=next(keys), padding=padding
            )
            return Rematerialised(residual) if rematerialise else residual

        def blocks(level: int, first: int, skip: int) -> tuple[Block, ...]:
            """Blocks of a level, from the channels of the first input and of skip connections."""
            inputs = [first] + [channels[level]] * (num_blocks - 1)
            return tuple(block(size + skip, level, heads[level]) for size in inputs)

        self.embedding = Embedding(
            width,
            keys=tuple(jax.random.split(next(keys), 3)),
            context_shape=context_shape,
            num_classes=num_classes,
        )
        # The channels of all pixels of a patch are concatenated.
        inputs, outputs = (
            n * self.patch**num_axes for n in (self.layout.inputs, self.layout.outputs)
        )
        self.first = Convolution(inputs, channels[0], num_axes, key=next(keys), padding=padding)
        lowest = len(channels) - 1
        above, below = (channels[0], *channels[:-1]), (*channels[1:], channels[-1])
        self.down = tuple(blocks(level, above[level], skip=0) for level in range(lowest + 1))
        self.middle = tuple(block(channels[-1], lowest, num) for num in (heads[-1], 0))
        self.up = tuple(
            blocks(level, below[level], skip=channels[level]) for level in range(lowest + 1)
        )
        self.norm = GroupNorm(channels[0])
        last = Convolution(channels[0], outputs, num_axes, key=next(keys), padding=padding)
        self.last = zeroed(last)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event."""
        condition = self.embedding(t, context)
        image = self.layout.to_image(x_t, self.first.weight.dtype)
        h = self.first(to_patches(image, self.patch))
        skips = []
        for level, blocks in enumerate(self.down):
            h = h if level == 0 else pool(h, 2)
            for block in blocks:
                h = block(h, condition)
                skips.append(h)
        for block in self.middle:
            h = block(h, condition)
        for blocks in reversed(self.up):
            # The size on the way down, which upsampling exceeds by one pixel if it is odd.
            space = skips[-1].shape[:-1]
            h = h if h.shape[:-1] == space else upsample(h, 2, space)
            for block in blocks:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), condition)
        y = self.last(jax.nn.silu(self.norm(h)))
        return self.layout.from_image(from_patches(y, self.patch))

    def resized(self, event_shape: tuple[int, ...]) -> "UNet":
        """Return the network with the same weights for events of another size.

        An example is a texture larger than the windows of the training data. Convolutions keep
        their receptive field; attention and the means of group norms extend over the whole event,
        so omit the attention (`attention_levels=0`) if sizes are to change.

        Args:
            event_shape: with the same number of axes and of channels.

        Raises:
            ValueError: another number of either, or fewer pixels than the levels require.
        """
        layout = self.layout.resized(event_shape)
        check_resolutions("the network", len(self.up), _num_patches(layout.space, self.patch))
        # No weight depends on the size of the event: the layout alone is replaced.
        return eqx.tree_at(lambda network: network.layout, self, layout)


def _num_patches(space: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Return the number of patches along each axis."""
    if any(n % patch for n in space):
        raise ValueError(f"patch={patch} must divide the pixels of every axis, which are {space}.")
    return tuple(n // patch for n in space)


def _check_channels(channels: object, space: tuple[int, ...]) -> tuple[int, ...]:
    """Return valid channels as a tuple."""
    sizes = check_shape("channels", channels)
    if not sizes:
        raise ValueError("channels=() must have one number for each level, such as (32, 64).")
    check_resolutions(f"channels={described(channels)}", len(sizes), space)
    return sizes


def _heads(channels: tuple[int, ...], attention_levels: int, num_heads: int) -> list[int]:
    """Return the number of attention heads at each level: 0 but at the lowest levels."""
    heads = [
        num_heads if level >= len(channels) - attention_levels else 0
        for level in range(len(channels))
    ]
    for size, num in zip(channels, heads, strict=True):
        if num and size % num:
            raise ValueError(
                f"num_heads={num_heads} must divide the channels of every level with "
                f"attention, but channels={channels} includes {size}."
            )
    return heads
