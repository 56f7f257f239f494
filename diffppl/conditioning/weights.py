"""Functions of particle weights, which are represented by normalised log-weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reweight(
    log_weights: Float[Array, " n"], log_increments: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Return new log-weights, and the log of the sum of weights times exp(increments)."""
    log_increments = jnp.where(jnp.isnan(log_increments), -jnp.inf, log_increments)
    # A dead particle stays dead; -inf plus an increment of +inf would be NaN.
    total = jnp.where(jnp.isneginf(log_weights), -jnp.inf, log_weights + log_increments)
    log_increment = jax.nn.logsumexp(total)
    # If all particles are dead, the weights are kept, so that the evidence is -inf and not NaN.
    alive = jnp.isfinite(log_increment)
    return jnp.where(alive, total - log_increment, log_weights), log_increment


def effective_sample_size(log_weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Return the effective sample size, 1 / sum of squared weights, between 1 and n."""
    # No underflow to zero: the largest weight is at least 1 / n.
    return 1 / jnp.sum(jnp.exp(2 * log_weights))


def relative_variance(
    log_weights: Float[Array, " n"],
    eves: Int[Array, " n"],
    num_resampled: Int[Array, ""],
    before: Float[Array, ""],
) -> Float[Array, ""]:
    """Estimate the relative variance of the evidence by the larger of two estimates.

    One is from the weight of each first ancestor: unbiased, but noisy, and often 0 if there were
    few resampling steps. The other is the sum of 1 / ESS - 1 / n over the resampling steps, for
    weights that are independent between them.

    Args:
        log_weights: normalised final log-weights.
        eves: index of the first ancestor of each particle.
        num_resampled: number of resampling steps.
        before: the sum over the resampling steps, without the final weights.

    References:
        Lee and Whiteley 2018, "Variance estimation in the particle filter".
    """
    n = log_weights.size
    shares = jnp.zeros(n).at[eves].add(jnp.exp(log_weights))
    inflation = (n / (n - 1)) ** (num_resampled + 1)
    independent = before + 1 / effective_sample_size(log_weights) - 1 / n
    return jnp.maximum(1 - inflation * (1 - jnp.sum(shares**2)), independent)
