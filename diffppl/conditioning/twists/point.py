"""The point estimate: the likelihood at E[x_0 given x_t]."""

from typing import final

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..program import Values
from ..target import Target
from .base import (
    Estimates,
    Linearised,
    Twisted,
    denoise,
    require_kind,
    require_noise,
    shifted,
    tweedie_factor,
)
from .gaussian import AbstractGaussianTwist


@final
class PointEstimate(AbstractGaussianTwist):
    """psi_t(x_t) = r(E[x_0 given x_t]): overconfident while x_t is noisy.

    One derivative of the denoiser per step, and any differentiable likelihood. Its gradient is
    the guidance of DPS, here with the coefficient that Bayes' rule gives.

    References:
        Chung et al. 2023 (DPS); Wu et al. 2023, section 3 (as a twist).
    """

    def check(self, target: Target) -> None:
        """Real data, seen through noise."""
        require_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        require_noise(target, self, remedy="MomentMatching()")

    def takes_jacobian(self, target: Target) -> bool:
        """See `AbstractGaussianTwist.takes_jacobian`."""
        del target
        return False

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""

        def log_value(x_t: Values) -> tuple[Array, Estimates]:
            estimates = denoise(target, x_t, t, latents)
            means = {name: estimate.mean for name, estimate in estimates.items()}
            return target.log_likelihood(means, latents), estimates

        (value, estimates), score = jax.value_and_grad(log_value, has_aux=True)(x_t)
        factors = tweedie_factor(target, t)
        shifts = {name: factors[name] * score[name] for name in score}
        flat, _ = ravel_pytree(score)
        linear = Linearised(jnp.zeros(0), jnp.zeros((0, 0)), jnp.zeros((0, flat.size)), flat)
        return Twisted(value, estimates, shifted(estimates, shifts), linear)
