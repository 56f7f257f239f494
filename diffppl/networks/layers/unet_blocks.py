"""Building blocks of the U-Net: group normalisation, residual blocks and self-attention.

A block takes h of shape `(*space, inputs)` and the conditioning vector c of time and context:

    a = convolve(silu(norm(h)))
    b = convolve(silu(norm(a) * (1 + scale(c)) + shift(c)))      this convolution starts at zero
    h' = project(h) + b,    and with attention  h'' = h' + attention(norm(h'))

References:
    He et al. 2016 (pre-activation residual blocks); Wu and He 2018 (group normalisation);
    Dhariwal and Nichol 2021, section 3 (scale and shift; attention at low resolutions).
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .convolution import Convolution, zeroed
from .padding import AbstractPadding

MAX_GROUPS, MIN_PER_GROUP = 32, 4


@final
class GroupNorm(eqx.Module):
    """Group normalisation, with a learned scale and shift for each channel.

    Means and variances are sums over many pixels, and use at least single precision.

    Args:
        channels: of the image, in at most 32 groups with at least four channels each.
    """

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]
    num_groups: int = eqx.field(static=True)

    def __init__(self, channels: int) -> None:
        # The largest divisor of `channels` within these limits.
        most = max(1, min(MAX_GROUPS, channels // MIN_PER_GROUP))
        self.num_groups = max(n for n in range(1, most + 1) if channels % n == 0)
        self.scale = jnp.ones(channels)
        self.shift = jnp.zeros(channels)

    def __call__(self, x: Float[Array, "*space channels"]) -> Float[Array, "*space channels"]:
        """Return the normalised image."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # The variance of centred values: E[x^2] - E[x]^2 would cancel where means are large.
        centred = wide - self._group_means(wide)
        factor = self.scale * jax.lax.rsqrt(self._group_means(centred**2) + 1e-5)
        return (centred * factor + self.shift).astype(x.dtype)

    def _group_means(self, x: Float[Array, "*space channels"]) -> Float[Array, " channels"]:
        """Return means over the pixels and channels of each group, repeated for each channel."""
        # Over pixels first: the long sums then run over contiguous rows, and the rest is short.
        means = jnp.mean(x, axis=tuple(range(x.ndim - 1))).reshape(self.num_groups, -1)
        size = means.shape[1]
        return jnp.repeat(jnp.mean(means, axis=1), size, total_repeat_length=x.shape[-1])


@final
class Attention(eqx.Module):
    """Multi-head self-attention between the pixels of an image.

    Args:
        channels: of the image.
        num_axes: spatial axes.
        num_heads: attention heads; it must divide `channels`.
        key: for the weights.
    """

    norm: GroupNorm
    inside: Convolution
    outside: Convolution
    num_heads: int = eqx.field(static=True)

    def __init__(self, channels: int, num_axes: int, num_heads: int, *, key: Array) -> None:
        key_in, key_out = jax.random.split(key)
        self.norm = GroupNorm(channels)
        self.inside = Convolution(channels, 3 * channels, num_axes, window=1, key=key_in)
        self.outside = zeroed(Convolution(channels, channels, num_axes, window=1, key=key_out))
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "*space channels"]) -> Float[Array, "*space channels"]:
        """Return the residual that is added to the image."""
        pixels = math.prod(x.shape[:-1])
        queries_keys_values = self.inside(self.norm(x)).reshape(pixels, 3, self.num_heads, -1)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(queries_keys_values, 1, 0))
        return self.outside(attended.reshape(x.shape))


@final
class ResidualBlock(eqx.Module):
    """A residual block of two convolutions, modulated by c in between, and optional attention.

    Args:
        inputs: input channels.
        outputs: output channels.
        num_axes: spatial axes.
        condition: length of the vector c.
        num_heads: attention heads; 0 for no attention.
        padding: of the convolutions.
        key: for the weights.
    """

    norms: tuple[GroupNorm, GroupNorm]
    convolutions: tuple[Convolution, Convolution]
    modulation: eqx.nn.Linear
    project: Convolution | None
    attention: Attention | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_axes: int,
        condition: int,
        num_heads: int,
        *,
        key: Array,
        padding: AbstractPadding,
    ) -> None:
        keys = jax.random.split(key, 5)
        self.norms = (GroupNorm(inputs), GroupNorm(outputs))
        # With the second convolution at zero the block is initially the identity or a projection.
        self.convolutions = (
            Convolution(inputs, outputs, num_axes, key=keys[0], padding=padding),
            zeroed(Convolution(outputs, outputs, num_axes, key=keys[1], padding=padding)),
        )
        self.modulation = eqx.nn.Linear(condition, 2 * outputs, key=keys[2])
        self.project = self.attention = None
        if inputs != outputs:
            self.project = Convolution(inputs, outputs, num_axes, window=1, key=keys[3])
        if num_heads:
            self.attention = Attention(outputs, num_axes, num_heads, key=keys[4])

    def __call__(
        self, h: Float[Array, "*space inputs"], condition: Float[Array, " condition"]
    ) -> Float[Array, "*space outputs"]:
        """Return the output for one image."""
        # a, b, h' and h'' of the docstring of this module.
        a = self.convolutions[0](jax.nn.silu(self.norms[0](h)))
        scale, shift = jnp.split(self.modulation(condition), 2)
        b = self.convolutions[1](jax.nn.silu(self.norms[1](a) * (1 + scale) + shift))
        h = b + (h if self.project is None else self.project(h))
        return h if self.attention is None else h + self.attention(h)
