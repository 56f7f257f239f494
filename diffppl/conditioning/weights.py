"""Arithmetic on the weights of particles; all of them are normalised log-weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reweight(
    log_weights: Float[Array, " n"], log_increments: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """New log-weights, and log of the sum of weights times exp(increments)."""
    log_increments = jnp.where(jnp.isnan(log_increments), -jnp.inf, log_increments)
    # A particle that has died stays dead, whatever its increment.
    total = jnp.where(jnp.isneginf(log_weights), -jnp.inf, log_weights + log_increments)
    log_increment = jax.nn.logsumexp(total)
    # If every particle has died, keep the weights: the run reports -inf evidence, not NaN.
    alive = jnp.isfinite(log_increment)
    return jnp.where(alive, total - log_increment, log_weights), log_increment


def effective_sample_size(log_weights: Float[Array, " n"]) -> Float[Array, ""]:
    """1 / sum of squared weights: between 1 and n."""
    return 1 / jnp.sum(jnp.exp(2 * log_weights))  # the largest weight is at least 1 / n


def relative_variance(
    log_weights: Float[Array, " n"], eves: Int[Array, " n"], num_resampled: Int[Array, ""]
) -> Float[Array, ""]:
    """Relative variance of the evidence, from how weight is shared among first ancestors.

    References:
        Lee and Whiteley 2018, "Variance estimation in the particle filter".
    """
    n = log_weights.size
    shares = jnp.zeros(n).at[eves].add(jnp.exp(log_weights))
    inflation = (n / (n - 1)) ** (num_resampled + 1)
    return jnp.maximum(1 - inflation * (1 - jnp.sum(shares**2)), 0.0)
