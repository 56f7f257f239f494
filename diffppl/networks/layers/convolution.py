"""The parts that image networks are made of: a convolution layer, smaller and larger images.

All take one image, channels last, with any number of spatial axes: `(*space, channels)`. `vmap`
makes batches of them.
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
    """A convolution that leaves the size of the image as it is.

    Weights start with variance 1 / fan-in, biases at zero.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        num_axes: spatial axes.
        window: pixels along each of them, an odd number; with 1 every pixel is on its own.
        key: for the weights.
        padding: what lies beyond the edges.
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
        padding: AbstractPadding = Zeros(),  # noqa: B008 (immutable)
    ) -> None:
        shape = (*(window,) * num_axes, inputs, outputs)
        self.weight = _uniform(key, shape) * math.sqrt(3 / math.prod(shape[:-1]))
        self.bias = jnp.zeros(outputs)
        self.padding = padding

    def __call__(self, x: Float[Array, "*space inputs"]) -> Float[Array, "*space outputs"]:
        """The layer's output for one image."""
        *window, inputs, outputs = self.weight.shape
        if math.prod(window) == 1:
            return x @ self.weight.reshape(inputs, outputs) + self.bias
        x, zeros = self.padding.extend(x, tuple(size // 2 for size in window))
        return convolve(x, self.weight, zeros) + self.bias


def _uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform between -1 and 1."""
    # Every length compiles a draw of its own, and a deep network has many shapes: so some more are
    # drawn, of few lengths. A normal takes five times as long to compile.
    size = math.prod(shape)
    drawn = jax.random.uniform(key, (1 << (size - 1).bit_length(),), minval=-1.0, maxval=1.0)
    return drawn[:size].reshape(shape)


def pool(x: Float[Array, "*space channels"], factor: int) -> Float[Array, "*less_space channels"]:
    """The mean of blocks of `factor` pixels along each axis.

    Where the last block is not full, the image's last pixel stands in for what it lacks.
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
    """Each pixel as a block of `factor` along each axis, cut to the size `space`."""
    *small, channels = x.shape
    # Broadcasting does not copy; repeating an axis at a time does.
    ones = [n for size in small for n in (size, 1)]
    blocks = [n for size in small for n in (size, factor)]
    x = jnp.broadcast_to(x.reshape(*ones, channels), (*blocks, channels))
    x = x.reshape(*(size * factor for size in small), channels)
    return x[tuple(slice(size) for size in space)]


def to_patches(
    x: Float[Array, "*space channels"], patch: int
) -> Float[Array, "*less_space more_channels"]:
    """Squares of `patch` pixels a side as one pixel each, of all their channels."""
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
    """The inverse of `to_patches`."""
    if patch == 1:
        return x
    *space, _ = x.shape
    num = len(space)
    x = x.reshape(*space, *[patch] * num, -1)
    x = jnp.moveaxis(x, range(num), range(0, 2 * num, 2))
    return x.reshape(*(size * patch for size in space), -1)


def zeroed(layer: Convolution) -> Convolution:
    """The layer, with weights and biases of zero."""
    zeros = (jnp.zeros_like(layer.weight), jnp.zeros_like(layer.bias))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, zeros)


def num_sizes(space: tuple[int, ...]) -> int:
    """How many sizes an image has until its longest axis is one pixel, each half the last."""
    return (max(space) - 1).bit_length() + 1
