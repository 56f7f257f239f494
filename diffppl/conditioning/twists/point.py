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
    only_score,
    require_kind,
    require_noise,
    shifted,
    tweedie_factor,
)


@final
class PointEstimate(AbstractTwist):
    """psi_t(x_t) = r(E[x_0 | x_t]): overconfident while x_t is noisy.

    One derivative of the denoiser per step, and any differentiable likelihood. Its gradient is the
    guidance of DPS, here with the coefficient that Bayes' rule gives. Where x_t is noisier than the
    observations that coefficient leaves the region in which r is nearly normal, so a step goes no
    further than to the maximum of r along it (for normal observations: to where the residual is
    least), which is what the published step size, a constant over the norm of the residual, is for.

    References:
        Chung et al. 2023 (DPS); Wu et al. 2023, section 3 (as a twist).
    """

    def resolve(self, target: Target) -> "PointEstimate":
        """Real data, observed with noise."""
        require_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        require_noise(target, self, remedy="MomentMatching()")
        return self

    def has_jacobian(self, target: Target) -> bool:
        """One product with it alone."""
        del target
        return False

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        names = target.sites(level.stage)

        def log_value(moving: Values) -> tuple[Array, Estimates]:
            at = x | moving
            estimates = target.estimate(at, level, latents)
            means = {name: estimate.mean for name, estimate in estimates.items()}
            return target.log_likelihood(
                target.complete(at, level, latents, means), latents
            ), estimates

        moving = {name: x[name] for name in names}
        (value, estimates), score = jax.value_and_grad(log_value, has_aux=True)(moving)
        factors = tweedie_factor(target, level, names)
        shifts = {name: factors[name] * score[name] for name in names}
        means = {name: estimate.mean for name, estimate in estimates.items()}
        length = _length(
            lambda moved: target.log_likelihood(target.complete(x, level, latents, moved), latents),
            means,
            shifts,
        )
        shifts = jax.tree.map(lambda shift: length * shift, shifts)
        flat, _ = ravel_pytree(score)
        return Twisted(value, estimates, shifted(estimates, shifts), {}, only_score(flat))


def _length(
    log_likelihood: Callable[[Values], Array], means: Values, shifts: Values
) -> Float[Array, ""]:
    """The share of a shift, at most 1, that maximises the quadratic model of log r along it."""

    def along(length: Array) -> Array:
        moved = {name: means[name] + length * shifts[name] for name in means}
        return log_likelihood(moved)

    def slope(length: Array) -> Array:
        return jax.jvp(along, (length,), (jnp.ones(()),))[1]

    first, second = jax.jvp(slope, (jnp.zeros(()),), (jnp.ones(()),))
    return jnp.where(second < 0, jnp.clip(-first / second, 0.0, 1.0), 1.0)
