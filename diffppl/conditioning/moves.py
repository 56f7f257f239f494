"""Moves of the other latents: random-walk Metropolis, for a whole cloud of particles at once.

A move leaves its target density invariant, so it may stand anywhere in a particle method; it only
spreads out the copies that resampling makes.

References:
    Gilks and Berzuini 2001 (resample-move); Roberts, Gelman and Gilks 1997 (the step size).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .target import Target


def can_move(target: Target) -> bool:
    """Whether there are other latents, none of which may feed a network.

    One that does takes part in every past kernel of the particle, which is not kept.
    """
    sites = target.sites
    return bool(sites.latents) and not any(
        site.depends_on_latents for site in sites.diffusion.values()
    )


def metropolis(
    key: Array,
    start: tuple[Float[Array, "n p"], Float[Array, " n"], Any],
    log_density: Callable[[Array], tuple[Float[Array, " n"], Any]],
    log_weights: Float[Array, " n"],
    num_moves: int,
) -> tuple[Float[Array, "n p"], Any, Float[Array, ""]]:
    """Move each particle `num_moves` times with the cloud's own covariance.

    Args:
        key: a typed JAX key.
        start: the unconstrained latents, and what `log_density` says of them.
        log_density: of every particle, and whatever else is worth keeping, of leading size n.
        log_weights: normalised, of the particles.
        num_moves: how many.

    Returns:
        The latents, what `log_density` says beside their density, and the share accepted.
    """
    n, dimension = start[0].shape
    weights = jnp.exp(log_weights)[:, None]

    def move(carry: tuple[Array, Array, Any], key: Array) -> tuple[Any, Array]:
        latents, value, _ = carry
        key_walk, key_accept = jax.random.split(key)
        centred = latents - jnp.sum(weights * latents, axis=0)
        covariance = (weights * centred).T @ centred
        jitter = 1e-8 + 1e-6 * jnp.diagonal(covariance)
        factor = jnp.linalg.cholesky(covariance + jnp.diag(jitter))
        noise = jax.random.normal(key_walk, latents.shape, latents.dtype)
        proposed = latents + 2.38 / jnp.sqrt(dimension) * noise @ factor.T
        new = (proposed, *log_density(proposed))
        log_uniform = jnp.log(jax.random.uniform(key_accept, (n,)))
        accept = log_uniform < new[1] - value
        kept = jax.tree.map(
            lambda a, b: jnp.where(accept.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, carry
        )
        return kept, jnp.mean(accept)

    (latents, _, aux), accepted = jax.lax.scan(move, start, jax.random.split(key, num_moves))
    return latents, aux, jnp.mean(accepted)
