"""Tempering of the latents at the start of a particle method.

Latents are drawn from their prior q(u), and the first twist psi(u) may leave few of them alive.
Where it does, the weights enter by and by: the particles pass through

    q(u)^{1 - lambda} psi(u)^lambda,    0 = lambda_0 < lambda_1 < .. < 1,

each step as long as it leaves most of them effective, followed by resampling and Metropolis moves.

References:
    Del Moral, Doucet and Jasra 2006; Jasra et al. 2011 (the choice of steps).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .weights import effective_sample_size

_MAX_STEPS = 30
_NUM_BISECTIONS = 20
_TOO_FEW = 0.5  # share of effective particles below which the weights enter by and by
_SHARE = 0.8  # of the particles that a step leaves effective


class Cloud(NamedTuple):
    """Particles on their way from q to psi.

    Attributes:
        particles: anything with a leading axis of particles.
        log_ratios: log psi - log q of each.
        eves: index of each particle's ancestor at the start.
        temperature: lambda.
        log_evidence: gained so far, nats.
        num_resampled: how often the particles were resampled.
    """

    particles: Any
    log_ratios: Float[Array, " n"]
    eves: Int[Array, " n"]
    temperature: Float[Array, ""]
    log_evidence: Float[Array, ""]
    num_resampled: Int[Array, ""]


Move = Callable[[Array, Any, Float[Array, ""]], tuple[Any, Float[Array, " n"]]]
"""Moves particles that are equally weighted at a temperature; also their new log psi - log q."""
Choose = Callable[[Array, Float[Array, " n"]], Int[Array, " n"]]
"""Resampling: the ancestors of equally weighted particles."""


def temper(
    key: Array, particles: Any, log_ratios: Float[Array, " n"], move: Move, choose: Choose
) -> Cloud:
    """Particles whose remaining weights, `(1 - temperature) * log_ratios`, are even enough."""
    log_ratios = jnp.where(jnp.isnan(log_ratios), -jnp.inf, log_ratios)
    zero = jnp.zeros(())
    cloud = Cloud(particles, log_ratios, jnp.arange(len(log_ratios)), zero, zero, jnp.asarray(0))

    def uneven(cloud: Cloud) -> Bool[Array, ""]:
        left = 1 - cloud.temperature
        return ~_is_even(cloud.log_ratios, left, _TOO_FEW) & (cloud.num_resampled < _MAX_STEPS)

    def body(cloud: Cloud) -> Cloud:
        keys = jax.random.split(jax.random.fold_in(key, cloud.num_resampled))
        step = _longest_step(cloud.log_ratios, 1 - cloud.temperature)
        log_weights, log_increment = _normalised(step * cloud.log_ratios)
        ancestors = choose(keys[0], jnp.exp(log_weights))
        chosen = jax.tree.map(lambda leaf: leaf[ancestors], cloud.particles)
        temperature = cloud.temperature + step
        particles, log_ratios = move(keys[1], chosen, temperature)
        return Cloud(
            particles,
            jnp.where(jnp.isnan(log_ratios), -jnp.inf, log_ratios),
            cloud.eves[ancestors],
            temperature,
            cloud.log_evidence + log_increment,
            cloud.num_resampled + 1,
        )

    return jax.lax.while_loop(uneven, body, cloud)


def _normalised(log_values: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Log-weights, and the log of the mean."""
    total = jax.nn.logsumexp(log_values)
    return log_values - total, total - jnp.log(log_values.size)


def _is_even(
    log_ratios: Float[Array, " n"], step: Float[Array, ""], share: float
) -> Bool[Array, ""]:
    alive = jnp.isfinite(log_ratios)
    log_weights, _ = _normalised(jnp.where(alive, step * log_ratios, -jnp.inf))
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
