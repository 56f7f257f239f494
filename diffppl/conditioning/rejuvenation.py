"""Rejuvenation of latents: random-walk Metropolis for a whole cloud of particles at once.

A move leaves its target density invariant, so it may stand anywhere in a particle method; it
spreads out the copies that resampling makes. The step is adapted to the cloud, half against half:
the particles that move take the covariance of those that do not, so that the target of each stays
invariant for any number of particles. A share of the steps has a scale drawn at random below that
of the prior, which moves particles whose complement has collapsed.

References:
    Gilks and Berzuini 2001 (resample-move); Roberts, Gelman and Gilks 1997 (the step size); Goodman
    and Weare 2010 (moving one half of an ensemble given the other).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import linalg
from .target import Target

_PRIOR_SHARE = 0.1  # of the steps that ignore the cloud
_LOG_SMALLEST = math.log(1e-3)  # of their scale, relative to the prior's


def can_move(target: Target) -> bool:
    """Whether there are latents, none of which changes a network.

    One that does takes part in every past kernel of the particle, which is not kept.
    """
    structure = target.structure
    return bool(structure.latents) and not structure.latents_change_networks


def metropolis(
    key: Array,
    start: tuple[Float[Array, "n p"], Float[Array, " n"]],
    log_density: Callable[[Array, Int[Array, ""]], Float[Array, " half"]],
    log_weights: Float[Array, " n"],
    prior_scale: Float[Array, " p"],
    num_mcmc_steps: int,
) -> tuple[Float[Array, "n p"], Float[Array, ""]]:
    """Move each particle `num_mcmc_steps` times.

    Args:
        key: a typed JAX key.
        start: the unconstrained latents and their log-densities.
        log_density: of the latents of a run of particles, `(half, p)`, and the index of the first.
        log_weights: normalised, of the particles.
        prior_scale: standard deviations of the prior, unconstrained.
        num_mcmc_steps: how many.

    Returns:
        The latents, and the share of moves accepted.
    """

    def move(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        latents, value, total = state
        latents, value, share = move_half(
            key, i, latents, value, log_density, lambda value: value, log_weights, prior_scale
        )
        return latents, value, total + share

    state = jax.lax.fori_loop(0, 2 * num_mcmc_steps, move, (*start, jnp.zeros(())))
    return state[0], state[2] / (2 * num_mcmc_steps)


def move_half(
    key: Array,
    i: Int[Array, ""],
    latents: Float[Array, "n p"],
    values: PyTree,
    evaluate: Callable[[Array, Int[Array, ""]], PyTree],
    log_density: Callable[[PyTree], Float[Array, " half"]],
    log_weights: Float[Array, " n"],
    prior_scale: Float[Array, " p"],
    *,
    is_new: bool | Bool[Array, ""] = False,
) -> tuple[Float[Array, "n p"], PyTree, Float[Array, ""]]:
    """Move the first half of the particles if i is even, the second half otherwise.

    Args:
        key: a typed JAX key, of all moves.
        i: the number of the move.
        latents: unconstrained.
        values: of `evaluate` for all particles.
        evaluate: values from the latents of a run of particles, and the index of the first.
        log_density: from the values.
        log_weights, prior_scale: those of `metropolis`.
        is_new: whether the particles are evaluated where they are, whatever their values were.

    Returns:
        Latents and values, and the share of the half that was moved.
    """
    n = len(log_weights)
    half = (n + 1) // 2
    first = jnp.where(i % 2 == 0, 0, n - half)
    now = rows((latents, values), first, half)
    proposed, log_uniform = _propose(
        jax.random.fold_in(key, i), latents, jnp.exp(log_weights), prior_scale, first, half
    )
    proposed = jnp.where(is_new, now[0], proposed)
    new = proposed, evaluate(proposed, first)
    is_accepted = is_new | (log_uniform < log_density(new[1]) - log_density(now[1]))
    # Computed once, not once more for every array that it selects from.
    is_accepted = jax.lax.optimization_barrier(is_accepted)

    def put(leaf: Array, new: Array, now: Array) -> Array:
        kept = jnp.where(is_accepted.reshape(-1, *[1] * (new.ndim - 1)), new, now)
        return jax.lax.dynamic_update_slice_in_dim(leaf, kept.astype(leaf.dtype), first, 0)

    latents, values = jax.tree.map(put, (latents, values), new, now)
    return latents, values, jnp.mean(is_accepted)


def rows(tree: PyTree, first: Int[Array, ""], num: int) -> PyTree:
    """`num` particles from the one numbered `first` on."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, num), tree)


def _propose(
    key: Array,
    latents: Float[Array, "n p"],
    weights: Float[Array, " n"],
    prior_scale: Float[Array, " p"],
    first: Int[Array, ""],
    half: int,
) -> tuple[Float[Array, "half p"], Float[Array, " half"]]:
    """Random-walk proposals for a run of particles, and the logarithms of uniform numbers.

    The others, which stay, give the covariance of the steps.
    """
    dimension = latents.shape[-1]
    factor = _complement_factor(latents, weights, first, half)
    noise, uniform = _random(key, half, dimension, latents.dtype)
    is_prior = uniform[:, :1] < _PRIOR_SHARE
    scale = jnp.exp(_LOG_SMALLEST * uniform[:, 1:2]) * prior_scale
    step = jnp.where(is_prior, scale * noise, 2.38 / math.sqrt(dimension) * noise @ factor.T)
    return rows(latents, first, half) + step, jnp.log(uniform[:, 2])


def _random(
    key: Array, num: int, dimension: int, dtype: Any
) -> tuple[Float[Array, "num {dimension}"], Float[Array, "num 3"]]:
    """Normal and uniform numbers from one draw: each draw is a loop of its own to compile."""
    least = jnp.nextafter(jnp.array(-1.0, dtype), jnp.array(0.0, dtype))  # -1 has no normal
    drawn = jax.random.uniform(key, (num, dimension + 3), dtype, least, 1.0)
    normal = math.sqrt(2) * jax.lax.erf_inv(drawn[:, :dimension])
    return normal, (1 + drawn[:, dimension:]) / 2


def _complement_factor(
    latents: Float[Array, "n p"], weights: Float[Array, " n"], first: Int[Array, ""], half: int
) -> Float[Array, "p p"]:
    """A root of the weighted covariance of the particles that stay."""
    index = jnp.arange(len(weights))
    stays = (index < first) | (index >= first + half)
    kept = jnp.where(stays, weights, 0.0)
    total = jnp.sum(kept)
    share = jnp.where(total > 0, kept / jnp.where(total > 0, total, 1.0), stays / jnp.sum(stays))
    centred = latents - share @ latents
    covariance = (share[:, None] * centred).T @ centred
    jitter = 1e-8 + 1e-6 * jnp.diagonal(covariance)
    return linalg.cholesky(covariance + jnp.diag(jitter))
