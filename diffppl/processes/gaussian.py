"""Variance-preserving Gaussian diffusion of real data.

    q(x_t | x_{t-1})      = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)           (table App. 1)
    q(x_t | x_0)          = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)
    q(x_{t-1} | x_t, x_0) = N(b_t x_0 + c_t x_t, v_t I)
        b_t = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t)
        c_t = sqrt(1 - beta_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)
        v_t = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

An estimate of x_0 is a mean m and a variance w per coordinate. By the laws of total expectation
and variance, the normal kernel with the exact first two moments is

    p(x_{t-1} | x_t) = N(b_t m + c_t x_t, v_t + b_t^2 w).

Its variance is v_t at w = 0 and beta_t at w = 1 - alpha_bar_t (data of unit variance): the two ends
of the entropy bounds in the paper's equation 24.
"""

from typing import NamedTuple, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ..schedules import AbstractSchedule
from .base import AbstractProcess, Time


@final
class GaussianEstimate(eqx.Module):
    """E[x_0 | x_t] and Var[x_0 | x_t] of each coordinate, in model units."""

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]


class PosteriorCoefficients(NamedTuple):
    """q(x_{t-1} | x_t, x_0) = N(x_0 * `x_0` + x_t * `x_t`, `variance`)."""

    x_0: Float[Array, ""]
    x_t: Float[Array, ""]
    variance: Float[Array, ""]


@final
class GaussianDiffusion(AbstractProcess[GaussianEstimate]):
    """Variance-preserving Gaussian diffusion of real data.

    Data should have an average second moment near 1 (`fit` scales them): the chain ends in N(0, I),
    and the entropy term of the ELBO assumes it.

    Example:
        >>> import diffppl as dp
        >>> process = dp.GaussianDiffusion(dp.schedules.cosine(num_steps=100))

    References:
        Sohl-Dickstein et al. 2015, sections 2.1 to 2.4 and table App. 1.
    """

    schedule: AbstractSchedule

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    @property
    def num_categories(self) -> None:
        return None

    @property
    def dtype(self) -> np.dtype:
        return jnp.result_type(float)

    def base(self, shape: tuple[int, ...]) -> dist.Distribution:
        return dist.Normal(jnp.zeros(shape), jnp.ones(shape))

    def transition(self, x: Array, t: Time) -> dist.Distribution:
        beta = self.schedule.beta()[t]
        return dist.Normal(jnp.sqrt(1 - beta) * x, jnp.sqrt(beta))

    def marginal(self, x_0: Array, t: Time) -> dist.Distribution:
        schedule = self.schedule
        return dist.Normal(
            jnp.sqrt(schedule.alpha_bar()[t]) * x_0, jnp.sqrt(schedule.one_minus_alpha_bar()[t])
        )

    def coefficients(self, t: Time) -> PosteriorCoefficients:
        """Return b_t, c_t and v_t of the module docstring."""
        beta = self.schedule.beta()[t]
        alpha_bar, noise = self.schedule.alpha_bar(), self.schedule.one_minus_alpha_bar()
        noise_ratio = noise[t - 1] / noise[t]
        return PosteriorCoefficients(
            x_0=jnp.sqrt(alpha_bar[t - 1]) * beta / noise[t],
            x_t=jnp.sqrt(1 - beta) * noise_ratio,
            variance=beta * noise_ratio,
        )

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> dist.Distribution:
        b, c, variance = self.coefficients(t)
        return dist.Normal(b * x_0 + c * x_t, jnp.sqrt(variance))

    def reverse(self, x_t: Array, estimate: GaussianEstimate, t: Time) -> dist.Distribution:
        """Return the normal kernel that matches the first two moments of p(x_{t-1} | x_t)."""
        b, c, variance = self.coefficients(t)
        # Law of total variance: v_t, plus the variance of b_t x_0 under the estimate.
        scale = jnp.sqrt(variance + b**2 * estimate.variance)
        return dist.Normal(b * estimate.mean + c * x_t, scale)

    def final_step(self, x_1: Array, estimate: GaussianEstimate) -> dist.Distribution:
        """Return T_pi(x_0 | x_1; beta_1), the fixed final step of the paper, without parameters."""
        del estimate
        return self.transition(x_1, 1)

    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."]:
        """Return the closed form, on average -log(2 pi e beta_1)/2 for unit second moments."""
        # Over x_1 ~ q(x_1 | x_0), E[(x_0 - sqrt(1 - beta_1) x_1)^2] / beta_1 is
        # 1 - beta_1 + beta_1 x_0^2.
        beta = self.schedule.beta()[1]
        return -0.5 * (jnp.log(2 * jnp.pi * beta) + 1 - beta + beta * x_0**2)

    def mean(self, estimate: GaussianEstimate) -> Float[Array, "..."]:
        return estimate.mean

    def estimate_from_logits(self, logits: Array) -> GaussianEstimate:
        raise TypeError("GaussianDiffusion has no logits; use Data(), Noise() or Velocity().")

    def kl(self, q: dist.Distribution, p: dist.Distribution) -> Float[Array, "..."]:
        return kl_divergence(q, p)

    def with_schedule(self, schedule: AbstractSchedule) -> "GaussianDiffusion":
        return GaussianDiffusion(schedule)
