"""The state of a particle method: weighted particles, their genealogy and their statistics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .chains import AbstractChain
from .program import Values
from .resampling import Resampling
from .twists import AbstractAdaptiveTwist, Twisted
from .weights import effective_sample_size, reweight

STATISTICS = ("ess", "num_ancestors", "acceptance", "nan_share", "excluded_share")
MIN_LOG_TWIST = -1e4
"""Replaces log psi = -inf, in nats: weights are consistent only for positive twists."""


Adapted = tuple[AbstractAdaptiveTwist, AbstractChain]
"""A twist adapted to the particles of a level, and the chain prepared for the step from there."""


class SMCState(NamedTuple):
    """Particles at one time.

    Attributes:
        x: every diffusion site at its time.
        latents: unconstrained latents.
        twisted: the twist at each particle.
        adapted: adapted twist and chain of the last level; None for twists that do not adapt.
        log_prior: log q of the latents, where they are tempered.
        temperature: the power of psi_T / q in the weights at x_T.
        log_weights: normalised log-weights; their exponentials sum to 1.
        eves: the eve index of each particle: its ancestor at the start.
        num_resampled: number of resampling steps so far.
        log_evidence: log evidence of the steps so far, in nats.
        variance: relative variance of the evidence up to the last resampling step, if the weights
            between resampling steps are independent.
        prior_scale: standard deviations of the latents under their prior.
        acceptance: acceptance rate of the last Metropolis steps.
        stats: `STATISTICS` at x_T and after each step.
    """

    x: Values
    latents: Float[Array, "n p"]
    twisted: Twisted
    adapted: Adapted | None
    log_prior: Float[Array, " n"]
    temperature: Float[Array, ""]
    log_weights: Float[Array, " n"]
    eves: Int[Array, " n"]
    num_resampled: Int[Array, ""]
    log_evidence: Float[Array, ""]
    variance: Float[Array, ""]
    prior_scale: Float[Array, " p"]
    acceptance: Float[Array, ""]
    stats: Float[Array, "num_entries 5"]


def weighted(
    state: SMCState, log_increments: Float[Array, " n"], entry: int | Int[Array, ""]
) -> SMCState:
    """Update the weights and the evidence, and record an entry of the statistics."""
    alive = jnp.isfinite(state.log_weights)
    log_weights, log_increment = reweight(state.log_weights, log_increments)
    # Particles that are eves, that have NaN increments, and that the twist excludes.
    is_eve = jnp.zeros_like(alive).at[state.eves].set(True)
    is_nan = alive & jnp.isnan(log_increments)
    is_excluded = alive & (state.twisted.log_value == MIN_LOG_TWIST)
    counts = jnp.sum(jnp.stack([is_eve, is_nan, is_excluded]), axis=1).astype(float)
    # The temperatures at x_T have one entry, which records their largest shares.
    shares = jnp.fmax(state.stats[entry, -2:], counts[1:] / alive.size)
    ess = effective_sample_size(log_weights)
    stats = jnp.concatenate([jnp.stack([ess, counts[0], state.acceptance]), shares])
    return state._replace(
        log_weights=log_weights,
        log_evidence=state.log_evidence + log_increment,
        stats=state.stats.at[entry].set(stats),
    )


def resampled(
    key: Array, state: SMCState, scheme: Resampling, threshold: Float[Array, ""]
) -> SMCState:
    """Resample if the effective sample size is below `threshold` times the number of particles."""
    n = state.log_weights.size
    ess = effective_sample_size(state.log_weights)

    def resample(state: SMCState) -> SMCState:
        ancestors = scheme(key, jnp.exp(state.log_weights), n)
        names = ("x", "latents", "twisted", "log_prior", "eves")
        values = {name: getattr(state, name) for name in names}
        chosen = jax.tree.map(lambda leaf: leaf[ancestors], values)
        return state._replace(
            **chosen,
            log_weights=jnp.full(n, -jnp.log(n), state.log_weights.dtype),
            num_resampled=state.num_resampled + 1,
            variance=state.variance + 1 / ess - 1 / n,
        )

    return jax.lax.cond(ess < threshold * n, resample, lambda state: state, state)
