"""Updates of the latents of a particle method, with tempering at the start.

Latents are drawn from their prior q(u); after weighting by the first twist psi(u) the effective
sample size may be small. In this case the particles pass through the sequence

    q(u)^{1 - lambda} psi(u)^lambda,    0 = lambda_0 < lambda_1 < .. <= 1,

whose steps are as long as the effective sample size allows. Each step is followed by resampling and
Metropolis steps.

References:
    Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 (adaptive choice of the steps).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .particles import SMCState
from .program import Values
from .rejuvenation import metropolis, rows, update_half
from .target import Target
from .twists import Twisted
from .weights import effective_sample_size

_MAX_TEMPERATURES = 30
_MCMC_FACTOR = 3  # Metropolis steps at a temperature below 1, relative to those of other steps
_NUM_BISECTIONS = 20
_MIN_ESS = 0.5  # fraction of the living particles below which the weights are tempered
_TARGET_ESS = 0.8  # fraction of the living particles after a step of the temperature


def tempered(
    temperature: Float[Array, ""], log_ratios: Float[Array, " n"], num_done: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Increase the temperature of equally weighted particles; also return log-weight increments.

    The temperature is set to 1 if this leaves the effective sample size above `_MIN_ESS`, or after
    `_MAX_TEMPERATURES` steps.

    Args:
        temperature: present temperature, below 1.
        log_ratios: log psi_T - log q of each particle.
        num_done: number of previous increases.
    """
    remaining, alive = 1 - temperature, jnp.isfinite(log_ratios)

    def bisect(i: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        # The first trial is the whole of the remaining step.
        step = jnp.where(i == 0, high, (low + high) / 2)
        min_share = jnp.where(i == 0, _MIN_ESS, _TARGET_ESS)
        log_weights = jax.nn.log_softmax(jnp.where(alive, step * log_ratios, -jnp.inf))
        share = effective_sample_size(log_weights) / jnp.sum(alive)
        # The share is NaN if all particles are dead, for which tempering is of no use.
        is_accepted = ~(share < min_share)
        return jnp.where(is_accepted, step, low), jnp.where(is_accepted, high, step)

    start = (jnp.zeros_like(remaining), remaining)
    step = jax.lax.fori_loop(0, 1 + _NUM_BISECTIONS, bisect, start)[0]
    is_last = (step >= remaining) | (num_done >= _MAX_TEMPERATURES)
    # Set to exactly 1, not to a sum that may round below it.
    temperature = jnp.where(is_last, 1.0, temperature + step)
    return temperature, jnp.where(is_last, remaining, step) * log_ratios


def num_keys(num_mcmc_steps: int) -> int:
    """Return the number of keys that `weight_and_update` uses."""
    return (_MAX_TEMPERATURES + 2) * (1 + 2 * num_mcmc_steps * _MCMC_FACTOR)


def weight_and_update(
    keys: Array,
    state: SMCState,
    evaluate: Callable[[Values, Array], tuple[Array, Twisted]],
    weigh: Callable[[Array, SMCState, Array], SMCState],
    num_mcmc_steps: int,
) -> SMCState:
    """Evaluate the twist of particles at a new level, weight them, and update their latents u.

    The Metropolis steps leave psi_t(x_t, u) invariant. While the temperature is below 1 they leave
    q(u)^{1 - temperature} psi_T^temperature invariant, and weighting and updates are repeated. All
    evaluations, each of half of the particles, share one loop, so that the twist is compiled once.

    Args:
        keys: `num_keys(num_mcmc_steps)` typed JAX keys.
        state: the particles; their twist and log-prior are not used.
        evaluate: returns log q(u) and the twist of a block of particles, from their x_t and u.
        weigh: returns weighted particles, from a key, the particles, and the number of previous
            weightings.
        num_mcmc_steps: number of final Metropolis steps; each temperature below 1 has
            `_MCMC_FACTOR` times as many.
    """
    keys = keys.reshape(_MAX_TEMPERATURES + 2, -1)  # of each weighting and its Metropolis steps

    def update(i: Array, state: SMCState, key: Array, is_new: Array) -> SMCState:
        def evaluate_rows(latents: Array, first: Array) -> tuple[Array, Twisted]:
            return evaluate(rows(state.x, first, len(latents)), latents)

        latents, (log_prior, twisted), accepted = update_half(
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
        acceptance = state.acceptance + jnp.where(is_new, 0.0, accepted)
        return state._replace(
            latents=latents, log_prior=log_prior, twisted=twisted, acceptance=acceptance
        )

    def body(carry: tuple[Array, SMCState, Array]) -> tuple[Array, SMCState, Array]:
        num_done, state, _ = carry
        is_new, is_tempered = num_done == 0, state.temperature < 1
        is_last = ~is_new & ~is_tempered
        # Iterations over halves: one for each at first, to evaluate them, then two for a step.
        num = jnp.where(is_new, 2, 2 * num_mcmc_steps * jnp.where(is_tempered, _MCMC_FACTOR, 1))
        state = state._replace(acceptance=jnp.where(is_new, state.acceptance, 0.0))
        own = keys[num_done]
        state = jax.lax.fori_loop(0, num, lambda i, s: update(i, s, own[1 + i], is_new), state)
        state = state._replace(acceptance=state.acceptance / jnp.where(is_new, 1, num))
        state = jax.lax.cond(
            is_last, lambda state: state, lambda state: weigh(own[0], state, num_done), state
        )
        return num_done + 1, state, is_last

    start = (jnp.asarray(0), state, jnp.zeros((), bool))
    return jax.lax.while_loop(lambda carry: ~carry[2], body, start)[1]


def update_at_x_0(
    keys: Array, target: Target, state: SMCState, log_likelihood: Float[Array, " n"]
) -> Float[Array, "n p"]:
    """Apply Metropolis steps to the latents at fixed x_0, which evaluate no network.

    Args:
        keys: typed JAX keys, two for each step.
        target: the target.
        state: the particles at t = 0.
        log_likelihood: log r at the particles.
    """

    def log_density(latents: Array, first: Array) -> Array:
        return jax.vmap(target.log_likelihood)(rows(state.x, first, len(latents)), latents)

    start = (state.latents, log_likelihood)
    return metropolis(keys, start, log_density, state.log_weights, state.prior_scale)[0]


def _density(
    temperature: Float[Array, ""], log_prior: Float[Array, " n"], twisted: Twisted
) -> Float[Array, " n"]:
    """Return log q^{1 - temperature} psi^temperature."""
    log_prior = jnp.where(temperature < 1, log_prior, 0.0)  # 0 times infinity is NaN
    return (1 - temperature) * log_prior + temperature * twisted.log_value
