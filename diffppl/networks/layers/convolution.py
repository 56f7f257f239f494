"""Building blocks of image networks: convolution, down- and upsampling, patches.

All take one image, channels last, with any number of spatial axes: `(*space, channels)`. Batches
are formed by `vmap`.
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .convolve import convolve
from .padding import AbstractPadding, Zeros


@final
class Convolution(eqx.Module):
    """A convolution that preserves the size of the image.

    Initial weights have variance 1 / fan-in, initial biases are zero.

    Args:
        inputs: input channels.
        outputs: output channels.
        num_axes: spatial axes.
        window: pixels along each of them, an odd number; 1 for a pointwise layer.
        key: for the weights.
        padding: values beyond the edges.
    """

    weight: Float[Array, "*window inputs outputs"]
    bias: Float[Array, " outputs"]
    padding: AbstractPadding

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_axes: int,
        window: int = 3,
        *,
        key: Array,
        padding: AbstractPadding = Zeros(),
    ) -> None:
        shape = (*(window,) * num_axes, inputs, outputs)
        # Uniform numbers between -1 and 1 have variance 1 / 3.
        self.weight = _uniform(key, shape) * math.sqrt(3 / math.prod(shape[:-1]))
        self.bias = jnp.zeros(outputs)
        self.padding = padding

    def __call__(self, x: Float[Array, "*space inputs"]) -> Float[Array, "*space outputs"]:
        """Return the output for one image."""
        *window, inputs, outputs = self.weight.shape
        if math.prod(window) == 1:  # pointwise: a matrix product
            return x @ self.weight.reshape(inputs, outputs) + self.bias
        x, zeros = self.padding.extend(x, tuple(size // 2 for size in window))
        return convolve(x, self.weight, zeros) + self.bias


def _uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draw uniform numbers between -1 and 1."""
    # Each length is compiled separately, and a deep network has many shapes, so lengths are rounded
    # up to powers of two. A normal draw takes five times as long to compile.
    size = math.prod(shape)
    drawn = jax.random.uniform(key, (1 << (size - 1).bit_length(),), minval=-1.0, maxval=1.0)
    return drawn[:size].reshape(shape)


def pool(x: Float[Array, "*space channels"], factor: int) -> Float[Array, "*less_space channels"]:
    """Average blocks of `factor` pixels along each axis.

    The last pixel of an axis is repeated to fill an incomplete block.
    """
    *space, channels = x.shape
    missing = [(0, -size % factor) for size in space]
    if any(after for _, after in missing):
        x = jnp.pad(x, (*missing, (0, 0)), mode="edge")
    blocks = [n for size in x.shape[:-1] for n in (size // factor, factor)]
    return jnp.mean(x.reshape(*blocks, channels), axis=tuple(range(1, 2 * len(space), 2)))


def upsample(
    x: Float[Array, "*less_space channels"], factor: int, space: tuple[int, ...]
) -> Float[Array, "*space channels"]:
    """Repeat each pixel `factor` times along each axis, and crop to the size `space`."""
    *small, channels = x.shape
    # Broadcasting all axes at once avoids the copy that `jnp.repeat` makes for each axis.
    ones = [n for size in small for n in (size, 1)]
    blocks = [n for size in small for n in (size, factor)]
    x = jnp.broadcast_to(x.reshape(*ones, channels), (*blocks, channels))
    x = x.reshape(*(size * factor for size in small), channels)
    return x[tuple(slice(size) for size in space)]


def to_patches(
    x: Float[Array, "*space channels"], patch: int
) -> Float[Array, "*less_space more_channels"]:
    """Merge blocks of `patch` pixels along each axis into the channels of one pixel."""
    if patch == 1:
        return x
    *space, channels = x.shape
    num = len(space)
    blocks = [n for size in space for n in (size // patch, patch)]
    x = jnp.moveaxis(x.reshape(*blocks, channels), range(0, 2 * num, 2), range(num))
    return x.reshape(*(size // patch for size in space), -1)


def from_patches(
    x: Float[Array, "*less_space more_channels"], patch: int
) -> Float[Array, "*space channels"]:
    """Invert `to_patches`."""
    if patch == 1:
        return x
    *space, _ = x.shape
    num = len(space)
    x = x.reshape(*space, *[patch] * num, -1)
    x = jnp.moveaxis(x, range(num), range(0, 2 * num, 2))
    return x.reshape(*(size * patch for size in space), -1)


def zeroed(layer: Convolution) -> Convolution:
    """Return the layer with weights and biases of zero."""
    zeros = (jnp.zeros_like(layer.weight), jnp.zeros_like(layer.bias))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, zeros)


def check_resolutions(what: str, num: int, space: tuple[int, ...]) -> None:
    """Raise a ValueError if `what` asks for more resolutions than the image has."""
    most = num_resolutions(space)
    if num > most:
        raise ValueError(
            f"{what} has {num} levels, but {max(space)} pixels can be halved {most - 1} times "
            f"only: give at most {most}."
        )


def num_resolutions(space: tuple[int, ...]) -> int:
    """Return the number of resolutions, each half the last, down to one pixel per axis."""
    return (max(space) - 1).bit_length() + 1
