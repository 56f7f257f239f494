"""Unbiased resampling schemes, which turn weighted particles into equally weighted ones.

A scheme returns the index of the ancestor of each new particle; the expected number of offspring
of particle i is `num` times its weight. To add one, subclass `AbstractResampling`.

References:
    Douc and Cappé 2005, "Comparison of resampling schemes for particle filtering".
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class AbstractResampling(eqx.Module):
    """A resampling scheme."""

    @abc.abstractmethod
    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        """Return the indices of `num` ancestors; `weights` sum to 1."""


def _invert(weights: Float[Array, " n"], points: Float[Array, " num"]) -> Int[Array, " num"]:
    """Evaluate the inverse of the cumulative weights at points in [0, 1), sorted or not."""
    cumulative = jnp.cumsum(weights)
    indices = jnp.searchsorted(cumulative / cumulative[-1], points, side="right")
    return jnp.minimum(indices, weights.size - 1)  # a point may round to 1


@final
class Systematic(AbstractResampling):
    """Evenly spaced points with a common random offset; the lowest variance in practice."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, (jnp.arange(num) + jax.random.uniform(key)) / num)


@final
class Stratified(AbstractResampling):
    """One point in each of `num` equal strata; variance at most that of `Multinomial`."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, (jnp.arange(num) + jax.random.uniform(key, (num,))) / num)


@final
class Multinomial(AbstractResampling):
    """Independent draws; the simplest scheme to analyse, with the highest variance."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, jax.random.uniform(key, (num,)))
