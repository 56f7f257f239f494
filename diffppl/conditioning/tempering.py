"""Tempering of the latents at the start of a particle method.

Latents are drawn from their prior q(u), and the first twist psi(u) may leave few of them alive.
Where it does, the weights enter by and by: the particles pass through

    q(u)^{1 - lambda} psi(u)^lambda,    0 = lambda_0 < lambda_1 < .. <= 1,

each step as long as it leaves most of them effective, followed by resampling and Metropolis moves.

References:
    Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 (the choice of steps).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .particles import SMCState
from .twists import Twisted
from .weights import effective_sample_size

MAX_STEPS = 30
_NUM_BISECTIONS = 20
_TOO_FEW = 0.5  # share of effective particles below which the weights enter by and by
_SHARE = 0.8  # of the particles that a step leaves effective


def tempered(
    state: SMCState, num_done: int | Int[Array, ""] = 0
) -> tuple[SMCState, Float[Array, " n"]]:
    """Raise the temperature of equally weighted particles, to 1 if their weights stay even.

    Also by what the log-weights change. After `MAX_STEPS` the rest enters at once.
    """
    log_ratios = state.twisted.log_value - state.log_prior
    left = 1 - state.temperature
    at_once = _is_even(log_ratios, left, _TOO_FEW) | (num_done >= MAX_STEPS)
    raised = state.temperature + _longest_step(log_ratios, left)
    temperature = jnp.where(at_once, 1.0, raised)
    increments = (temperature - state.temperature) * log_ratios
    return state._replace(temperature=temperature), increments


def untempered(state: SMCState) -> tuple[SMCState, Float[Array, " n"]]:
    """The same for particles that cannot be moved: all at once."""
    log_ratios = state.twisted.log_value - state.log_prior
    return state._replace(temperature=jnp.asarray(1.0)), log_ratios


def tempered_density(
    temperature: Float[Array, ""], log_prior: Float[Array, " n"], twisted: Twisted
) -> Float[Array, " n"]:
    """log q^{1 - temperature} psi^temperature."""
    log_prior = jnp.where(temperature < 1, log_prior, 0.0)  # which may be infinite
    return (1 - temperature) * log_prior + temperature * twisted.log_value


def _is_even(
    log_ratios: Float[Array, " n"], step: Float[Array, ""], share: float
) -> Bool[Array, ""]:
    alive = jnp.isfinite(log_ratios)
    log_weights = jax.nn.log_softmax(jnp.where(alive, step * log_ratios, -jnp.inf))
    effective = effective_sample_size(log_weights)
    # Where no particle agrees with the observations no temperature helps.
    return (effective >= share * jnp.sum(alive)) | ~jnp.any(alive)


def _longest_step(log_ratios: Float[Array, " n"], longest: Float[Array, ""]) -> Float[Array, ""]:
    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        even = _is_even(log_ratios, middle, _SHARE)
        return jnp.where(even, middle, low), jnp.where(even, high, middle)

    start = (jnp.zeros_like(longest), longest)
    return jax.lax.fori_loop(0, _NUM_BISECTIONS, halve, start)[0]
