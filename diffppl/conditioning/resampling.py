"""Unbiased resampling schemes, which turn weighted particles into equally weighted ones.

A scheme is a function `(key, weights, num) -> ancestors`. The weights have shape `(n,)` and sum to
1. The result has shape `(num,)`, and its expected number of indices i is `num * weights[i]`. Any
function with this signature can be used, such as those of BlackJAX.

References:
    Douc and Cappé 2005, "Comparison of resampling schemes for particle filtering".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["multinomial", "stratified", "systematic"]

Resampling = Callable[[Array, Array, int], Array]


def systematic(key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Use evenly spaced points with a common random offset; the lowest variance in practice."""
    return _invert(weights, (jnp.arange(num) + jax.random.uniform(key)) / num)


def stratified(key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Use one point in each of `num` equal strata; variance at most that of `multinomial`."""
    return _invert(weights, (jnp.arange(num) + jax.random.uniform(key, (num,))) / num)


def multinomial(key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
    """Draw independently; the simplest scheme to analyse, with the highest variance."""
    return _invert(weights, jax.random.uniform(key, (num,)))


def _invert(weights: Float[Array, " n"], points: Float[Array, " num"]) -> Int[Array, " num"]:
    """Evaluate the inverse of the cumulative weights at points in [0, 1), sorted or not."""
    cumulative = jnp.cumsum(weights)
    indices = jnp.searchsorted(cumulative / cumulative[-1], points, side="right")
    return jnp.minimum(indices, weights.size - 1)  # a point may round to 1
