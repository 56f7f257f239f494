"""Moment matching: the likelihood averaged over a Gaussian approximation to p(x_0 | x_t).

Where later stages depend on the running one, their x_0 is denoised from x_T conditioned on the
running stage's. With G the derivative of h with respect to each site's x_0, through every network
that depends on the site,

    Cov[h | x_t] = sum over unfinished sites of G_i C_i G_i',    dh/dx_t^i = G_i J_i,

so one formula serves any number of stages.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from ... import linalg
from ..program import Values
from ..target import Estimates, Level, Target
from .base import AbstractTwist, Linearised, Twisted, check_kind, only_score, shifted
from .covariance import AbstractCovariance, Isotropic, Tweedie
from .denoised import denoise
from .normal import (
    MAX_DENSE,
    LinearObservations,
    conjugate_gradients,
    log_density,
    rounding_variance,
)


@final
class MomentMatching(AbstractTwist):
    """Linearise each observed site's mean at E[x_0 | x_t] and add the covariance of x_0.

    Exact where E[x_0 | x_t] is linear and the observations are linear and Gaussian. Observed
    sites without a mean and a variance, `numpyro.factor` and the priors of other latents are
    evaluated at the point estimate. Up to 32 observed numbers are solved for exactly; more by
    conjugate gradients, with an estimated determinant (the twist is slightly less accurate, and a
    weighted method remains consistent).

    Args:
        covariance: `Tweedie()` or `Isotropic()`; None uses `Tweedie()` for up to 32 observed
            numbers and `Isotropic()`, whose cost does not grow with them, for more.

    References:
        Boys et al. 2024 (Tweedie); Song et al. 2023 (isotropic); Rozet et al. 2024 (conjugate
        gradients).
    """

    covariance: AbstractCovariance | None = None

    def resolve(self, target: Target) -> "MomentMatching":
        check_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        return self.with_covariance(target)

    def with_covariance(self, target: Target) -> "MomentMatching":
        """Return the twist with the default covariance for the number of observations."""
        if self.covariance is not None:
            return self
        few = target.num_observed() <= MAX_DENSE
        return MomentMatching(Tweedie() if few else Isotropic())

    def has_jacobian(self, target: Target) -> bool:
        assert self.covariance is not None
        return 0 < target.num_observed() <= MAX_DENSE and self.covariance.is_jacobian

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        return self.evaluate_with_states(target, x, level, latents, {})

    def evaluate_with_states(
        self, target: Target, x: Values, level: Level, latents: Array, states: Values
    ) -> Twisted:
        """Evaluate the twist over the real sites.

        Args:
            target, x, level, latents: those of `evaluate`.
            states: x_0 of the running stage's discrete sites.
        """
        covariance = self.covariance
        assert covariance is not None, "resolve the twist first"
        denoised = denoise(target, x, level, latents, states)
        mean = denoised.mean
        linear = LinearObservations(denoised.observe, mean)
        observations, residual = linear.at, linear.residual
        # Gradient in x_t of the log-density of everything but the observations with moments.
        rest = denoised.pull_back(linear.gradient)
        inflation = covariance.inflation * denoised.learned_noise
        num = denoised.num_running

        def times_covariance(vector: Array) -> Array:
            times = covariance.times(vector, denoised.pull_back, denoised.factor, denoised.noise)
            return times + inflation * vector

        # `score` is (dh/dx_t)' (H C H' + R)^{-1} residual.
        if residual.size == 0:
            value, score, kept = jnp.zeros(()), jnp.zeros_like(mean), only_score(rest[:num])
        elif residual.size > MAX_DENSE:
            value, cotangent = _iterative(linear, times_covariance)
            score = denoised.pull_back(cotangent)
            kept = only_score((rest + score)[:num])
        else:
            jacobian = linear.jacobian()  # H
            if covariance.is_jacobian:
                jacobian_t = jax.vmap(denoised.pull_back)(jacobian)  # dh/dx_t
                projected = linalg.nearest_psd((jacobian_t * denoised.factor) @ jacobian.T)
                projected += (jacobian * inflation) @ jacobian.T
            else:
                jacobian_t = None
                projected = jax.vmap(times_covariance)(jacobian) @ jacobian.T
            rounding = rounding_variance(projected) * jnp.eye(residual.size)
            total = projected + rounding + observations.covariance.as_matrix()
            factor = linalg.cholesky(total)
            white = linalg.solve_triangular(factor, residual)
            value = log_density(white, jnp.diagonal(factor))
            solved = linalg.solve_triangular(factor, white, transpose=True)
            if jacobian_t is None:
                score = denoised.pull_back(jacobian.T @ solved)
                kept = only_score((rest + score)[:num])
            else:
                score = jacobian_t.T @ solved
                kept = Linearised(white, factor, jacobian_t[:, :num], rest[:num])
        # Tweedie's formula: E[x_0 | x_t, y] - E[x_0 | x_t] = factor * d log psi / dx_t.
        shifts = denoised.unravel((denoised.factor * (rest + score))[:num])
        guided = clamped(target, shifted(denoised.estimates, shifts))
        return Twisted(value + observations.log_rest, denoised.estimates, guided, {}, kept)


def clamped(target: Target, guided: Estimates) -> Estimates:
    """Set entries observed without noise: their guided kernel is then q(x_{t-1} | x_t, x_0)."""
    if not target.has_noiseless:
        return guided
    observed = target.observed_entries()
    return {
        name: eqx.tree_at(
            lambda e: (e.mean, e.variance),
            estimate,
            (
                jnp.where(observed[name][0], observed[name][1], estimate.mean),
                jnp.where(observed[name][0], 0.0, estimate.variance),
            ),
        )
        for name, estimate in guided.items()
    }


def _iterative(
    linear: LinearObservations, times_covariance: Callable[[Array], Array]
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """log psi_t and H' (H C H' + R)^{-1} residual, by matrix-vector products.

    The determinant is that of the diagonal of R plus the mean diagonal entry of H C H', which one
    Rademacher probe estimates. The probe is constant, since psi must be a function of x_t.
    """
    noise, residual = linear.at.covariance, linear.residual
    solved = conjugate_gradients(
        lambda v: linear.push(times_covariance(linear.pull(v))) + noise.mv(v), residual
    )
    signs = jax.random.rademacher(jax.random.key(0), residual.shape, residual.dtype)
    probe = linear.pull(signs)
    # Hutchinson's estimate of tr(H C H') / m.
    variance = jnp.maximum(probe @ times_covariance(probe), 0.0) / residual.size
    log_det = jnp.sum(jnp.log(2 * jnp.pi * (lx.diagonal(noise) + variance)))
    return -0.5 * (residual @ solved + log_det), linear.pull(solved)
