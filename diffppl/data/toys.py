"""The toy problems of Sohl-Dickstein et al. 2015, sections 3.1 and 3.2."""

import math
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..checks.arguments import check_float, check_key, check_size
from .source import AbstractSource

LOW, HIGH = 1.5 * math.pi, 4.5 * math.pi  # angles of the roll: one and a half turns


@final
class SwissRoll(AbstractSource):
    """Points on a spiral in the plane, with a mean of 0 and a second moment of 1.

    A point is angle * (cos angle, sin angle), with angles uniform over one and a half turns,
    centred and then scaled by one factor. The paper does not specify its construction.

    Args:
        noise: standard deviation of normal noise, added afterwards. Without noise the roll is a
            curve, which has no density: the chain's first noise level then determines the bound.

    Raises:
        ValueError: `noise` is negative or not finite.

    Example:
        >>> result = dp.fit(jax.random.key(0), model, dp.data.SwissRoll(), num_iterations=5_000)
    """

    noise: Float[Array, ""]

    def __init__(self, noise: float = 0.0) -> None:
        noise = check_float("noise", noise, 0.0, closed=True)
        self.noise = jnp.asarray(noise, dtype=float)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def batch(self, key: Array, size: int) -> tuple[Float[Array, "size 2"], None]:
        key_angle, key_noise = jax.random.split(check_key(key))
        size = check_size("size", size)
        angle = jax.random.uniform(key_angle, (size,), minval=LOW, maxval=HIGH)
        return self.curve(angle) + self.noise * jax.random.normal(key_noise, (size, 2)), None

    def curve(self, angle: ArrayLike) -> Float[Array, "... 2"]:
        """Return the points at the angles, without noise."""
        angle = jnp.asarray(angle, dtype=float)
        turns = HIGH - LOW
        # Moments under a uniform angle a, of a exp(ia), with integral (1 - ia) exp(ia), and of a^2.
        ends = np.array([LOW, HIGH])
        mean = np.diff((1 - 1j * ends) * np.exp(1j * ends)).view(float) / turns
        square = (HIGH**3 - LOW**3) / (3 * turns)
        scale = math.sqrt((square - np.sum(mean**2)) / 2)
        points = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], axis=-1)
        return (points - mean.astype(points.dtype)) / scale


def heartbeats(length: int = 20, period: int = 5) -> Int[np.ndarray, "period length"]:
    """Return the bit sequences with a 1 in every `period`-th place, a row for each offset.

    They are equally likely, so a perfect model has log p = -log(period).

    Raises:
        ValueError: `period` is not between 1 and `length`.

    Example:
        >>> dp.data.heartbeats().shape
        (5, 20)
    """
    length, period = check_size("length", length), check_size("period", period)
    if period > length:
        raise ValueError(f"period={period} must be from 1 to length={length}.")
    return (np.arange(length) % period == np.arange(period)[:, None]).astype(int)
