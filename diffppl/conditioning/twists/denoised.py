"""Estimates of x_0 at one particle, with their derivatives."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..moments import Observations
from ..program import Values
from ..target import Estimates, Level, Target
from .base import flat_like, learned_noise, noise_of, tweedie_factor


class Denoised(NamedTuple):
    """Estimates of x_0 at one particle and their derivatives, over the unfinished real sites.

    The `num_running` coordinates of the running stage come first.
    """

    estimates: Estimates
    mean: Float[Array, " d"]
    pull_back: Callable[[Array], Array]
    observe: Callable[[Array], Observations]
    unravel: Callable[[Array], Values]
    num_running: int
    factor: Float[Array, " d"]
    noise: Float[Array, " d"]
    learned_noise: Float[Array, " d"]


def denoise(target: Target, x: Values, level: Level, latents: Array, states: Values) -> Denoised:
    """Denoise the running stage from x_t, and later stages from x_T.

    Args:
        target, x, level, latents: as in `AbstractTwist.evaluate`.
        states: x_0 of the running stage's discrete sites.
    """
    running = target.sites(level.stage, discrete=False)
    stages = range(level.stage + 1, target.structure.num_stages)
    later = tuple(name for stage in stages for name in target.sites(stage, discrete=False))
    unfinished = tuple(
        site.name for site in target.structure.diffusion if site.stage >= level.stage
    )
    flat_running, unravel = ravel_pytree({name: x[name] for name in running})
    flat_later, unravel_later = ravel_pytree({name: x[name] for name in later})

    def denoise_running(flat: Array) -> tuple[Array, Estimates]:
        estimates = target.estimate(x | unravel(flat), level, latents)
        real = {name: estimates[name] for name in running}
        return ravel_pytree({name: e.mean for name, e in real.items()})[0], real

    mean, vjp, estimates = jax.vjp(denoise_running, flat_running, has_aux=True)
    mean_later, vjp_later = jnp.zeros(0), lambda vector: (vector,)
    if later:
        x_0 = target.complete(x, level, latents, unravel(mean) | states)
        networks = target.networks(x_0, latents)

        def denoise_later(flat: Array) -> Array:
            values = unravel_later(flat)
            means = {
                name: networks[name][0].denoise(values[name], target.num_steps, networks[name][1])
                for name in later
            }
            return ravel_pytree(means)[0]

        mean_later, vjp_later = jax.vjp(denoise_later, flat_later)
    num = flat_running.size

    def pull_back(vector: Array) -> Array:
        return jnp.concatenate([vjp(vector[:num])[0], vjp_later(vector[num:])[0]])

    def observe(flat: Array) -> Observations:
        shifts = unravel_later(flat[num:] - mean_later)
        x_0 = target.complete(x, level, latents, unravel(flat[:num]) | states, shifts)
        return target.observations(x_0, latents, noiseless=unfinished)

    def over_sites(values: Callable[..., Values]) -> Array:
        """Broadcast one number per site over all coordinates."""
        return jnp.concatenate(
            [
                flat_like(values(target, level, names), {name: x[name] for name in names})
                for names in (running, later)
            ]
        )

    return Denoised(
        estimates,
        jnp.concatenate([mean, mean_later]),
        pull_back,
        observe,
        unravel,
        num,
        over_sites(tweedie_factor),
        over_sites(noise_of),
        over_sites(learned_noise),
    )
