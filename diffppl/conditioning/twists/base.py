"""Twists: approximations to p(y given x_t) that let a chain look ahead.

A twist looks at x_t through the denoiser and returns three things for one particle: the
log-value log psi_t(x_t, u), which approximates log E[r(x_0, u) given x_t]; the model's own estimate
of x_0; and the *guided* estimate, conditioned on what the program observed. Handing the guided
estimate to `process.reverse` gives a guided kernel, so guidance changes the kernel, not the loop.

For real data, with C_t = Cov[x_0 given x_t] = (1-abar_t)/sqrt(abar_t) dE[x_0 given x_t]/dx_t
(Tweedie's second-order formula), and an observed site of mean h(x_0) and covariance R:

    psi_t(x_t)          = N(y; h(m), H C_t H' + R),   m = E[x_0 given x_t], H = dh/dx_0 at m
    guided E[x_0 | x_t] = m + C_t H' (H C_t H' + R)^{-1} (y - h(m))

Any positive psi leaves a weighted method consistent; a better one wastes fewer particles.

To add one, subclass `AbstractTwist`, mark it `typing.final`, and add a row to the tests' registry.

References:
    Wu et al. 2023 (twisted SMC); Chung et al. 2023 (the point estimate); Song et al. 2023 (PiGDM,
    isotropic covariance); Boys et al. 2024 (Tweedie covariance).
"""

import abc
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..target import Target

Estimates = dict[str, Any]


@final
class Twisted(eqx.Module):
    """What a twist says of one particle at time t."""

    log_value: Float[Array, ""]
    estimates: Estimates
    guided: Estimates


class AbstractTwist(eqx.Module):
    """An approximation to E[r(x_0, u) given x_t]."""

    @abc.abstractmethod
    def check(self, target: Target) -> None:
        """Refuse programs that the twist cannot handle, naming the site."""

    @abc.abstractmethod
    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """The twist at one particle (model units)."""

    @abc.abstractmethod
    def finish(
        self, key: Array, target: Target, x_1: Values, estimates: Estimates, latents: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_0 near p(x_0 given x_1) r(x_0, u); also log p(x_0 given x_1) - log q(x_0)."""


def require_kind(target: Target, twist: AbstractTwist, *, discrete: bool, remedy: str) -> None:
    """Refuse a program whose diffusion sites are discrete where they must not be, or real."""
    for name, model in target.models().items():
        is_discrete = model.process.support.is_discrete
        if is_discrete != discrete:
            raise ValueError(
                f"twist={type(twist).__name__}() cannot look at site {name!r}, whose data are "
                f"{'discrete' if is_discrete else 'real'}; use twist={remedy}."
            )


def denoise(target: Target, x_t: Values, t: Array, latents: Array) -> Estimates:
    """The model's estimate of x_0 at each diffusion site, for one particle."""
    contexts = target.contexts(latents)
    return {
        name: model.estimate(x_t[name], t, contexts[name])
        for name, model in target.models().items()
    }


def tweedie_factor(target: Target, t: Array) -> Values:
    """(1 - alpha_bar_t) / sqrt(alpha_bar_t) of each site; 0 where nothing of x_0 is left."""

    def factor(model: Any) -> Array:
        schedule = model.process.schedule
        signal, noise = jnp.sqrt(schedule.alpha_bar()[t]), schedule.noise()[t]
        return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1.0), 0.0)

    return target.map_sites(factor)


def shifted(estimates: Estimates, shifts: Values) -> Estimates:
    """Gaussian estimates with their means moved."""
    return {
        name: eqx.tree_at(lambda e: e.mean, estimate, estimate.mean + shifts[name])
        for name, estimate in estimates.items()
    }
