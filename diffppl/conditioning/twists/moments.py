"""Moment matching: the likelihood averaged over a Gaussian guess at x_0 given x_t."""

import abc
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from ..program import Values
from ..target import Target
from .base import (
    AbstractTwist,
    Estimates,
    Twisted,
    denoise,
    require_kind,
    shifted,
    tweedie_factor,
)
from .gaussian import edge_given_observations, normal_log_density

MOST_FOR_TWEEDIE = 8


class AbstractCovariance(eqx.Module):
    """A model of Cov[x_0 given x_t]."""

    @abc.abstractmethod
    def observed(
        self,
        jacobian: Float[Array, "m d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, "m m"]:
        """H Cov[x_0 given x_t] H'.

        Args:
            jacobian: H, of the observed means with respect to x_0.
            pull_back: the vector-Jacobian product of E[x_0 given x_t] with respect to x_t.
            factor: (1 - alpha_bar_t) / sqrt(alpha_bar_t) of each coordinate.
            noise: 1 - alpha_bar_t of each coordinate.
        """


@final
class Tweedie(AbstractCovariance):
    """The denoiser's own: (1 - alpha_bar_t) / sqrt(alpha_bar_t) dE[x_0 given x_t] / dx_t.

    Exact for an exact denoiser, at one vector-Jacobian product per observed number. A learned
    denoiser's Jacobian is neither symmetric nor positive, so the nearest such matrix is taken.
    """

    def observed(
        self,
        jacobian: Float[Array, "m d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, "m m"]:
        """See `AbstractCovariance.observed`."""
        del noise
        covariance = (jax.vmap(pull_back)(jacobian) * factor) @ jacobian.T
        values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
        return (vectors * jnp.maximum(values, 0)) @ vectors.T


@final
class Isotropic(AbstractCovariance):
    """r_t^2 I with r_t^2 = v (1 - alpha_bar_t) / (alpha_bar_t v + 1 - alpha_bar_t).

    That of data with independent coordinates of variance `variance` (model units; `fit` scales
    data to 1). One vector-Jacobian product per step however many numbers are observed.

    References:
        Song et al. 2023 (PiGDM), there with variance 1.
    """

    variance: Float[Array, ""]

    def __init__(self, variance: ArrayLike = 1.0) -> None:
        self.variance = jnp.asarray(variance, dtype=float)

    def observed(
        self,
        jacobian: Float[Array, "m d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, "m m"]:
        """See `AbstractCovariance.observed`."""
        del pull_back, factor
        r2 = self.variance * noise / ((1 - noise) * self.variance + noise)
        return (jacobian * r2) @ jacobian.T


@final
class MomentMatching(AbstractTwist):
    """Linearise each observed site's mean at E[x_0 given x_t] and add the spread of x_0 to it.

    Exact where E[x_0 given x_t] is linear and the observations are linear and Gaussian. Observed
    sites without a mean and a variance, `numpyro.factor` and the priors of other latents enter
    at the point estimate.

    Args:
        covariance: `Tweedie()` or `Isotropic()`; None takes `Tweedie()` for up to 8 observed
            numbers and `Isotropic()`, whose cost does not grow with them, for more.

    References:
        Boys et al. 2024 (Tweedie); Song et al. 2023 (isotropic).
    """

    covariance: AbstractCovariance | None = None

    def check(self, target: Target) -> None:
        """Real data only."""
        require_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""
        flat_x_t, unravel = ravel_pytree(x_t)

        def denoised(flat: Array) -> tuple[Array, Estimates]:
            estimates = denoise(target, unravel(flat), t, latents)
            return ravel_pytree({name: e.mean for name, e in estimates.items()})[0], estimates

        mean, pull_back, estimates = jax.vjp(denoised, flat_x_t, has_aux=True)
        seen = target.observations(unravel(mean), latents)
        value = seen.log_rest
        cotangent = jax.grad(lambda flat: target.observations(unravel(flat), latents).log_rest)(
            mean
        )
        factor = _flat_like(tweedie_factor(target, t), x_t)
        if seen.value.size:
            jacobian = jax.jacrev(lambda flat: target.observations(unravel(flat), latents).mean)(
                mean
            )
            noise = target.map_sites(lambda model: model.process.schedule.noise()[t])
            spread = self._covariance(seen.value.size).observed(
                jacobian, lambda v: pull_back(v)[0], factor, _flat_like(noise, x_t)
            )
            log_density, solved = normal_log_density(
                seen.value - seen.mean, spread + seen.covariance
            )
            value = value + log_density
            cotangent = cotangent + jacobian.T @ solved
        shifts = unravel(factor * pull_back(cotangent)[0])
        return Twisted(value, estimates, shifted(estimates, shifts))

    def _covariance(self, num_observed: int) -> AbstractCovariance:
        if self.covariance is not None:
            return self.covariance
        return Tweedie() if num_observed <= MOST_FOR_TWEEDIE else Isotropic()

    def finish(
        self, key: Array, target: Target, x_1: Values, estimates: Estimates, latents: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.finish`."""
        return edge_given_observations(key, target, x_1, estimates, latents)


def _flat_like(values: Values, like: Values) -> Float[Array, " d"]:
    """One number per site, spread over the site's coordinates."""
    return ravel_pytree({name: jnp.broadcast_to(values[name], like[name].shape) for name in like})[
        0
    ]
