"""Tempering of the latents at the start of a particle method.

Latents are drawn from their prior q(u), and the first twist psi(u) may leave few of them alive.
Where it does, the weights enter by and by: the particles pass through

    q(u)^{1 - lambda} psi(u)^lambda,    0 = lambda_0 < lambda_1 < .. <= 1,

each step as long as it leaves most of them effective, followed by resampling and Metropolis moves.

References:
    Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 (the choice of steps).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .particles import SMCState
from .program import Values
from .rejuvenation import move_half, rows
from .twists import Twisted
from .weights import effective_sample_size

_MAX_STEPS = 30
_TEMPER_MOVES = 3
_NUM_BISECTIONS = 20
_TOO_FEW = 0.5  # share of effective particles below which the weights enter by and by
_SHARE = 0.8  # of the particles that a step leaves effective


def tempered(
    temperature: Float[Array, ""], log_ratios: Float[Array, " n"], num_done: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Raise the temperature of equally weighted particles, to 1 if their weights stay even.

    Also by what the log-weights change. After `_MAX_STEPS` the rest enters at once.

    Args:
        temperature: below 1.
        log_ratios: log psi_T - log q of each particle.
        num_done: how often it was raised before.
    """
    left = 1 - temperature
    at_once = _is_even(log_ratios, left, _TOO_FEW) | (num_done >= _MAX_STEPS)
    step = jnp.where(at_once, left, _longest_step(log_ratios, left))
    return jnp.where(at_once, 1.0, temperature + step), step * log_ratios


def weigh_and_move(
    key: Array,
    state: SMCState,
    evaluate: Callable[[Values, Array], tuple[Array, Twisted]],
    weigh: Callable[[Array, SMCState, Array], SMCState],
    num_mcmc_steps: int,
) -> SMCState:
    """Evaluate the twist of particles at a new level, weigh them, and move their latents u.

    Moves leave psi_t(x_t, u) invariant. While the temperature is below 1 they leave
    q(u)^{1 - temperature} psi_T^temperature so, and weighing and moving are repeated. All
    evaluations stand in one loop, by half clouds, because a twist takes long to compile.

    Args:
        key: a typed JAX key.
        state: the particles; of their twist and log-prior nothing is used.
        evaluate: log q(u) and the twist of a run of particles, from their x_t and u.
        weigh: from a key, the particles, and how often they were weighed before.
        num_mcmc_steps: at the end; `_TEMPER_MOVES` times as many at each temperature before.
    """
    keys = jax.random.split(key, (_MAX_STEPS + 2, 2))

    def move(i: Array, state: SMCState, key: Array, is_new: Array) -> SMCState:
        def evaluate_rows(latents: Array, first: Array) -> tuple[Array, Twisted]:
            return evaluate(rows(state.x, first, len(latents)), latents)

        latents, (log_prior, twisted), share = move_half(
            key,
            i,
            state.latents,
            (state.log_prior, state.twisted),
            evaluate_rows,
            lambda values: _density(state.temperature, *values),
            state.log_weights,
            state.prior_scale,
            is_new=is_new,
        )
        acceptance = state.acceptance + jnp.where(is_new, 0.0, share)
        return state._replace(
            latents=latents, log_prior=log_prior, twisted=twisted, acceptance=acceptance
        )

    def body(carry: tuple[Array, SMCState, Array]) -> tuple[Array, SMCState, Array]:
        num_done, state, _ = carry
        is_new, is_tempered = num_done == 0, state.temperature < 1
        is_last = ~is_new & ~is_tempered
        num = jnp.where(is_new, 2, 2 * num_mcmc_steps * jnp.where(is_tempered, _TEMPER_MOVES, 1))
        key_weigh, key_moves = keys[num_done]
        state = state._replace(acceptance=jnp.where(is_new, state.acceptance, 0.0))
        state = jax.lax.fori_loop(0, num, lambda i, s: move(i, s, key_moves, is_new), state)
        state = state._replace(acceptance=state.acceptance / jnp.where(is_new, 1, num))
        state = jax.lax.cond(
            is_last, lambda state: state, lambda state: weigh(key_weigh, state, num_done), state
        )
        return num_done + 1, state, is_last

    start = (jnp.asarray(0), state, jnp.zeros((), bool))
    return jax.lax.while_loop(lambda carry: ~carry[2], body, start)[1]


def _density(
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
