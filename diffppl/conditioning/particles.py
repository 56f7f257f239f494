"""The state of a particle method: weighted particles, their genealogy and their statistics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .program import Values
from .resampling import AbstractResampling
from .twists import Twisted
from .weights import effective_sample_size, reweight

STATISTICS = ("ess", "num_ancestors", "acceptance", "nan_share", "excluded_share")
MIN_LOG_TWIST = -1e4
"""Nats, in place of minus infinity: weights are consistent for positive twists alone."""


class SMCState(NamedTuple):
    """Particles at one time.

    Attributes:
        x: every diffusion site at its time.
        latents: unconstrained.
        twisted: the twist at each particle.
        log_prior: log q of the latents, where they are tempered.
        temperature: the power of psi_T / q among the weights at x_T.
        log_weights: normalised; their exponentials sum to 1.
        eves: the index of each particle's ancestor at the start.
        num_resampled: how often the particles were resampled.
        log_evidence: of the steps so far, nats.
        prior_scale: of the latents.
        acceptance: of the last Metropolis moves.
        stats: `STATISTICS` at x_T, and after each step.
    """

    x: Values
    latents: Float[Array, "n p"]
    twisted: Twisted
    log_prior: Float[Array, " n"]
    temperature: Float[Array, ""]
    log_weights: Float[Array, " n"]
    eves: Int[Array, " n"]
    num_resampled: Int[Array, ""]
    log_evidence: Float[Array, ""]
    prior_scale: Float[Array, " p"]
    acceptance: Float[Array, ""]
    stats: Float[Array, "num_entries 5"]


def weighted(
    state: SMCState, log_increments: Float[Array, " n"], entry: int | Int[Array, ""]
) -> SMCState:
    """New weights, the evidence gained, and an entry of the statistics."""
    alive = jnp.isfinite(state.log_weights)
    log_weights, log_increment = reweight(state.log_weights, log_increments)
    present = jnp.zeros_like(state.eves).at[state.eves].set(1)
    ess, num_ancestors = effective_sample_size(log_weights), jnp.sum(present).astype(float)
    shares = jnp.stack(
        [
            jnp.mean(alive & jnp.isnan(log_increments)),
            jnp.mean(alive & (state.twisted.log_value == MIN_LOG_TWIST)),
        ]
    )
    # Of the temperatures at x_T, which have one entry, the worst share counts.
    shares = jnp.fmax(state.stats[entry, -2:], shares)
    found = jnp.concatenate([jnp.stack([ess, num_ancestors, state.acceptance]), shares])
    return state._replace(
        log_weights=log_weights,
        log_evidence=state.log_evidence + log_increment,
        stats=state.stats.at[entry].set(found),
    )


def resampled(
    key: Array, state: SMCState, scheme: AbstractResampling, threshold: Float[Array, ""]
) -> SMCState:
    """Equally weighted particles, if the effective sample size is below a share of their number."""
    n = state.log_weights.size
    needed = effective_sample_size(state.log_weights) < threshold * n

    def resample(state: SMCState) -> SMCState:
        parents = scheme.parents(key, jnp.exp(state.log_weights), n)
        names = ("x", "latents", "twisted", "log_prior", "eves")
        each = {name: getattr(state, name) for name in names}
        chosen = jax.tree.map(lambda leaf: leaf[parents], each)
        return state._replace(
            **chosen,
            log_weights=jnp.full(n, -jnp.log(n), state.log_weights.dtype),
            num_resampled=state.num_resampled + 1,
        )

    return jax.lax.cond(needed, resample, lambda state: state, state)
