"""Fourier features, which let a smooth network represent fine detail in few coordinates.

    features(x) = (x, sin(F x), cos(F x)),    F initially with entries from N(0, scale^2).

A dense network learns low-frequency functions of its input first, and those that vary over a
length l only once one of its features does; with F of scale 1 / l some do from the start. For data
close to a curve or a surface, low noise levels require such functions.

References:
    Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low
    Dimensional Domains"; there F is fixed, here it is trained with the rest.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import check_float


@final
class FourierFeatures(eqx.Module):
    """A vector x with sines and cosines of `num` projections of it: `size + 2 num` features.

    Args:
        size: length of x.
        num: projections.
        scale: standard deviation of the frequencies, radians per unit of x.
        key: for the frequencies.
    """

    frequencies: Float[Array, "num size"]

    def __init__(self, size: int, num: int, scale: float, *, key: Array) -> None:
        # Named as the argument of the networks that contain this layer.
        scale = check_float("fourier_scale", scale, 0.0)
        self.frequencies = scale * jax.random.normal(key, (num, size))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " features"]:
        """Return the features of one vector."""
        angles = self.frequencies @ x
        return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)])
