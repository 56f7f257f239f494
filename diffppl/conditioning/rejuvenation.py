"""Rejuvenation of latents by random-walk Metropolis steps on a cloud of particles.

A step leaves its target density invariant, so it is valid at any point of a particle method; it
diversifies the duplicates that resampling creates. The proposal is adapted to the cloud by halves:
the half that is updated uses the covariance of the other half, so that the target of each particle
stays invariant for any number of particles. A fraction of the steps ignores the cloud and has a
random scale below that of the prior, in case the other half has collapsed.

References:
    Gilks and Berzuini 2001 (resample-move); Roberts, Gelman and Gilks 1997 (the step size); Goodman
    and Weare 2010 (updating one half of an ensemble conditionally on the other).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import linalg
from .target import Target

_PRIOR_SHARE = 0.1  # fraction of the steps that ignore the cloud
_LOG_MIN_SCALE = math.log(1e-3)  # of these steps, relative to the scale of the prior


def can_update_latents(target: Target) -> bool:
    """Return whether there are latents, none of which changes a network.

    A latent that changes a network enters every past kernel of the particle; these are not stored.
    """
    structure = target.structure
    return bool(structure.latents) and not structure.latents_change_networks


def metropolis(
    keys: Array,
    start: tuple[Float[Array, "n p"], Float[Array, " n"]],
    log_density: Callable[[Array, Int[Array, ""]], Float[Array, " half"]],
    log_weights: Float[Array, " n"],
    prior_scale: Float[Array, " p"],
) -> tuple[Float[Array, "n p"], Float[Array, ""]]:
    """Apply Metropolis steps to each particle.

    Args:
        keys: typed JAX keys, two for each step, one of which updates each half of the particles.
        start: the unconstrained latents and their log-densities.
        log_density: log-densities of a block of particles, from their latents, `(half, p)`, and the
            index of the first.
        log_weights: normalised log-weights of the particles.
        prior_scale: standard deviations of the unconstrained latents under the prior.

    Returns:
        The latents and the acceptance rate.
    """

    def update(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        latents, value, total = state
        latents, value, acceptance = update_half(
            keys[i], i, latents, value, log_density, lambda value: value, log_weights, prior_scale
        )
        return latents, value, total + acceptance

    state = jax.lax.fori_loop(0, len(keys), update, (*start, jnp.zeros(())))
    return state[0], state[2] / len(keys)


def update_half(
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
    """Apply a Metropolis step to the first half of the particles if i is even, else to the second.

    Args:
        key: a typed JAX key.
        i: index of the step.
        latents: unconstrained latents.
        values: outputs of `evaluate` for all particles.
        evaluate: returns values of a block of particles, from their latents and the index of the
            first.
        log_density: returns log-densities from the values.
        log_weights, prior_scale: as in `metropolis`.
        is_new: whether to evaluate the half at its current latents and ignore `values`.

    Returns:
        Latents, values, and the acceptance rate of the half.
    """
    n = len(log_weights)
    half = (n + 1) // 2
    first = jnp.where(i % 2 == 0, 0, n - half)
    current = rows((latents, values), first, half)
    proposed, log_uniform = _propose(key, latents, jnp.exp(log_weights), prior_scale, first, half)
    proposed = jnp.where(is_new, current[0], proposed)
    new = proposed, evaluate(proposed, first)
    is_accepted = is_new | (log_uniform < log_density(new[1]) - log_density(current[1]))
    # Without the barrier XLA recomputes the condition in the fusion of every array below.
    is_accepted = jax.lax.optimization_barrier(is_accepted)

    def select(leaf: Array, new: Array, current: Array) -> Array:
        kept = jnp.where(is_accepted.reshape(-1, *[1] * (new.ndim - 1)), new, current)
        return jax.lax.dynamic_update_slice_in_dim(leaf, kept.astype(leaf.dtype), first, 0)

    latents, values = jax.tree.map(select, (latents, values), new, current)
    return latents, values, jnp.mean(is_accepted)


def rows(tree: PyTree, first: Int[Array, ""], num: int) -> PyTree:
    """Return `num` consecutive particles, starting at index `first`."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, num), tree)


def _propose(
    key: Array,
    latents: Float[Array, "n p"],
    weights: Float[Array, " n"],
    prior_scale: Float[Array, " p"],
    first: Int[Array, ""],
    half: int,
) -> tuple[Float[Array, "half p"], Float[Array, " half"]]:
    """Propose random-walk steps for a block of particles; also return logs of uniform draws.

    The covariance of the steps is that of the particles outside the block.
    """
    dimension = latents.shape[-1]
    factor = _complement_factor(latents, weights, first, half)
    noise, uniform = _normal_and_uniform(key, half, dimension, latents.dtype)
    is_prior = uniform[:, :1] < _PRIOR_SHARE
    scale = jnp.exp(_LOG_MIN_SCALE * uniform[:, 1:2]) * prior_scale
    # 2.38 / sqrt(p) is the optimal scale for normal targets (Roberts, Gelman and Gilks 1997).
    step = jnp.where(is_prior, scale * noise, 2.38 / math.sqrt(dimension) * noise @ factor.T)
    return rows(latents, first, half) + step, jnp.log(uniform[:, 2])


def _normal_and_uniform(
    key: Array, num: int, dimension: int, dtype: DTypeLike
) -> tuple[Float[Array, "num {dimension}"], Float[Array, "num 3"]]:
    """Draw normal and uniform numbers in one call, since each call compiles a loop of its own."""
    lower = jnp.nextafter(jnp.array(-1.0, dtype), jnp.array(0.0, dtype))  # erf_inv(-1) = -inf
    drawn = jax.random.uniform(key, (num, dimension + 3), dtype, lower, 1.0)
    normal = math.sqrt(2) * jax.lax.erf_inv(drawn[:, :dimension])
    return normal, (1 + drawn[:, dimension:]) / 2


def _complement_factor(
    latents: Float[Array, "n p"], weights: Float[Array, " n"], first: Int[Array, ""], half: int
) -> Float[Array, "p p"]:
    """Return a Cholesky factor of the weighted covariance of the particles outside the block."""
    index = jnp.arange(len(weights))
    is_outside = (index < first) | (index >= first + half)
    kept = jnp.where(is_outside, weights, 0.0)
    total = jnp.sum(kept)
    # Equal weights if all particles outside the block are dead.
    equal = is_outside / jnp.sum(is_outside)
    normalised = jnp.where(total > 0, kept / jnp.where(total > 0, total, 1.0), equal)
    centred = latents - normalised @ latents
    covariance = (normalised[:, None] * centred).T @ centred
    # The covariance is singular if the cloud has collapsed or has fewer than p + 1 particles.
    jitter = 1e-8 + 1e-6 * jnp.diagonal(covariance)
    return linalg.cholesky(covariance + jnp.diag(jitter))
