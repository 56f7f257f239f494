"""Resampling: from weighted particles to equally weighted ones, without bias.

A scheme returns, for each new particle, the index of its parent; the expected number of children
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
    """A way to draw the parents of new particles."""

    @abc.abstractmethod
    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        """Indices of `num` parents; `weights` sum to 1."""


def _invert(weights: Float[Array, " n"], points: Float[Array, " num"]) -> Int[Array, " num"]:
    """Where sorted or unsorted points in [0, 1) fall in the cumulative weights."""
    cumulative = jnp.cumsum(weights)
    indices = jnp.searchsorted(cumulative / cumulative[-1], points, side="right")
    return jnp.minimum(indices, weights.size - 1)


@final
class Systematic(AbstractResampling):
    """Evenly spaced points with one common offset: least variance in practice."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, (jnp.arange(num) + jax.random.uniform(key)) / num)


@final
class Stratified(AbstractResampling):
    """One point in each of `num` equal strata: provably no worse than multinomial."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, (jnp.arange(num) + jax.random.uniform(key, (num,))) / num)


@final
class Multinomial(AbstractResampling):
    """Independent draws: the simplest to analyse, the most variance."""

    def parents(self, key: Array, weights: Float[Array, " n"], num: int) -> Int[Array, " num"]:
        return _invert(weights, jax.random.uniform(key, (num,)))
