"""The point estimate: the likelihood at E[x_0 | x_t]."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..program import Values
from ..target import Estimates, Level, Target
from .base import (
    AbstractTwist,
    Twisted,
    check_kind,
    check_noise,
    only_score,
    shifted,
    tweedie_factor,
)


@final
class PointEstimate(AbstractTwist):
    """psi_t(x_t) = r(E[x_0 | x_t]): overconfident while x_t is noisy.

    Costs one derivative of the denoiser per step and supports any differentiable likelihood. Its
    gradient is the guidance of DPS, with the coefficient from Bayes' rule. Where x_t is noisier
    than the observations, such a step leaves the region in which r is approximately normal, so it
    is limited to the maximum of r along it (for normal observations: the smallest residual). The
    published step size, a constant over the norm of the residual, serves the same purpose.

    References:
        Chung et al. 2023 (DPS); Wu et al. 2023, section 3 (as a twist).
    """

    def resolve(self, target: Target) -> "PointEstimate":
        check_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        check_noise(target, self, remedy="MomentMatching()")
        return self

    def has_jacobian(self, target: Target) -> bool:
        del target
        return False  # one vector-Jacobian product only

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        names = target.sites(level.stage)

        def log_value(running: Values) -> tuple[Array, Estimates]:
            at = x | running
            estimates = target.estimate(at, level, latents)
            means = {name: estimate.mean for name, estimate in estimates.items()}
            return target.log_likelihood(
                target.complete(at, level, latents, means), latents
            ), estimates

        running = {name: x[name] for name in names}
        (value, estimates), score = jax.value_and_grad(log_value, has_aux=True)(running)
        # Tweedie's formula: E[x_0 | x_t, y] - E[x_0 | x_t] = factor * d log psi / dx_t.
        factors = tweedie_factor(target, level, names)
        shifts = {name: factors[name] * score[name] for name in names}
        means = {name: estimate.mean for name, estimate in estimates.items()}
        fraction = _step_fraction(
            lambda x_0: target.log_likelihood(target.complete(x, level, latents, x_0), latents),
            means,
            shifts,
        )
        shifts = jax.tree.map(lambda shift: fraction * shift, shifts)
        flat, _ = ravel_pytree(score)
        return Twisted(value, estimates, shifted(estimates, shifts), {}, only_score(flat))


def _step_fraction(
    log_likelihood: Callable[[Values], Array], means: Values, shifts: Values
) -> Float[Array, ""]:
    """The fraction of a shift, at most 1, that maximises a quadratic model of log r along it."""

    def along(fraction: Array) -> Array:
        shifted_means = {name: means[name] + fraction * shifts[name] for name in means}
        return log_likelihood(shifted_means)

    def slope(fraction: Array) -> Array:
        return jax.jvp(along, (fraction,), (jnp.ones(()),))[1]

    first, second = jax.jvp(slope, (jnp.zeros(()),), (jnp.ones(()),))
    # Newton's step; the whole shift where log r is not concave.
    return jnp.where(second < 0, jnp.clip(-first / second, 0.0, 1.0), 1.0)
