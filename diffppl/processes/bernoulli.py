"""Bernoulli ("binomial") diffusion of bits towards a base rate.

    q(x_t = 1 | x_{t-1}) = (1 - beta_t) x_{t-1} + beta_t pi            (table App. 1)
    q(x_t = 1 | x_0)     = alpha_bar_t x_0 + (1 - alpha_bar_t) pi

The paper has pi = 0.5 in its table and pi = 0.2 for heartbeats; any rate per bit is supported.
Because a bit takes two values, `posterior` averaged over an estimate P(x_0 = 1) = f is linear in f
and exact: no family of factorised kernels improves on the exact f.

In a long chain the probability that a bit flips is far below the spacing of float32 near 1, and the
divergence of two kernels depends on the ratio of such probabilities. Posterior and reverse kernels
are therefore parametrised by their log-odds.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from ..checks.arrays import as_numbers, describe_invalid
from ..schedules import AbstractSchedule, Learned, check_schedule
from .base import AbstractProcess, Time
from .divergence import categorical_kl


@final
class BernoulliEstimate(eqx.Module):
    """Log-odds of P(x_0 = 1 | x_t), per bit."""

    logits: Float[Array, "..."]


@final
class BernoulliDiffusion(AbstractProcess[BernoulliEstimate]):
    """Diffusion of bits towards independent Bernoulli variables.

    Args:
        schedule: the noise levels; `schedules.reciprocal` is the paper's.
        rate: P(bit = 1) at the end of the chain, in (0, 1): one number, or one per bit (any
            shape that broadcasts against the event). The ELBO is tightest at the mean of the data.

    Example:
        >>> import diffppl as dp
        >>> process = dp.BernoulliDiffusion(dp.schedules.reciprocal(num_steps=2000), rate=0.2)

    References:
        Sohl-Dickstein et al. 2015, sections 2.1 to 2.4, table App. 1 and section D.1.2.
    """

    schedule: AbstractSchedule
    rate: Float[Array, "..."]

    def __init__(self, schedule: AbstractSchedule, rate: ArrayLike = 0.5) -> None:
        check_fixed_schedule(schedule, type(self).__name__)
        self.schedule = schedule
        rates = as_numbers("rate", rate)
        # In NumPy: a chain may be respaced while a program is traced, where JAX returns tracers.
        if not isinstance(rates, Tracer):
            rates = np.asarray(rates, jnp.result_type(float))
            bad = np.asarray(~((rates > 0) & (rates < 1)))
            if bad.any():
                raise ValueError(
                    f"rate must lie strictly between 0 and 1: {describe_invalid(bad, rates)}."
                )
        self.rate = jnp.asarray(rates, dtype=float)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.boolean

    @property
    def num_categories(self) -> None:
        return None

    @property
    def dtype(self) -> np.dtype:
        return jnp.result_type(int)

    def base(self, shape: tuple[int, ...]) -> dist.BernoulliProbs:
        return dist.BernoulliProbs(jnp.broadcast_to(self.rate, shape))

    def _mix(self, x: Array, kept: Array) -> Float[Array, "..."]:
        """Return P(1) if `x` is kept with probability `kept`, and else redrawn from the base."""
        return kept * x + (1 - kept) * self.rate

    def transition(self, x: Array, t: Time) -> dist.BernoulliProbs:
        return dist.BernoulliProbs(self._mix(x, 1 - self.schedule.beta()[t]))

    def marginal(self, x_0: Array, t: Time) -> dist.BernoulliProbs:
        return dist.BernoulliProbs(self._mix(x_0, self.schedule.alpha_bar()[t]))

    def _posterior(self, x_t: Array, x_0: Array, t: Time) -> tuple[Array, Array]:
        """Return q(x_{t-1} | x_t, x_0) at x_{t-1} = 1 and 0, each to full precision."""
        beta = self.schedule.beta()[t]
        alpha_bar, noise = (
            self.schedule.alpha_bar()[t - 1],
            self.schedule.one_minus_alpha_bar()[t - 1],
        )
        # Bayes: q(x_t | x_{t-1}) q(x_{t-1} | x_0) for both values of x_{t-1}. The complement of
        # one of them would lose the digits of a small probability.
        to_one, to_zero = beta * self.rate, beta * (1 - self.rate)
        one = jnp.where(x_t == 1, 1 - to_zero, to_zero) * (alpha_bar * x_0 + noise * self.rate)
        zero = jnp.where(x_t == 1, to_one, 1 - to_one) * (
            alpha_bar * (1 - x_0) + noise * (1 - self.rate)
        )
        return one / (one + zero), zero / (one + zero)

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> dist.BernoulliLogits:
        one, zero = self._posterior(x_t, x_0, t)
        return dist.BernoulliLogits(jnp.log(one) - jnp.log(zero))

    def reverse(self, x_t: Array, estimate: BernoulliEstimate, t: Time) -> dist.BernoulliLogits:
        """Return the posteriors for x_0 = 1 and x_0 = 0, weighted by the estimate."""
        one_if_1, zero_if_1 = self._posterior(x_t, jnp.ones(()), t)
        one_if_0, zero_if_0 = self._posterior(x_t, jnp.zeros(()), t)
        p_1, p_0 = jax.nn.sigmoid(estimate.logits), jax.nn.sigmoid(-estimate.logits)
        one, zero = p_1 * one_if_1 + p_0 * one_if_0, p_1 * zero_if_1 + p_0 * zero_if_0
        return dist.BernoulliLogits(jnp.log(one) - jnp.log(zero))

    def final_step(self, x_1: Array, estimate: BernoulliEstimate) -> dist.BernoulliProbs:
        """Return T_pi(x_0 | x_1; beta_1), the fixed final step of the paper, without parameters."""
        del estimate
        return self.transition(x_1, 1)

    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."]:
        # The sum over x_1 of q(x_1 | x_0) log p(x_0 | x_1).
        prob_1 = self._mix(x_0, 1 - self.schedule.beta()[1])
        log_prob_1 = self.transition(jnp.ones(()), 1).log_prob(x_0)
        log_prob_0 = self.transition(jnp.zeros(()), 1).log_prob(x_0)
        return prob_1 * jnp.asarray(log_prob_1) + (1 - prob_1) * jnp.asarray(log_prob_0)

    def mean(self, estimate: BernoulliEstimate) -> Float[Array, "..."]:
        return jax.nn.sigmoid(estimate.logits)

    def estimate_from_logits(self, logits: Array) -> BernoulliEstimate:
        return BernoulliEstimate(logits)

    def kl(
        self,
        q: dist.BernoulliProbs | dist.BernoulliLogits,
        p: dist.BernoulliProbs | dist.BernoulliLogits,
    ) -> Float[Array, "..."]:
        # NumPyro 0.22 has no divergence of Bernoulli distributions.
        return categorical_kl(_binary_probs(q), _binary_probs(p))

    def with_schedule(self, schedule: AbstractSchedule) -> "BernoulliDiffusion":
        return BernoulliDiffusion(schedule, self.rate)


def _binary_probs(kernel: dist.BernoulliProbs | dist.BernoulliLogits) -> Float[Array, "... 2"]:
    """Return P(1) and P(0) on a trailing axis."""
    if isinstance(kernel, dist.BernoulliLogits):
        # Two sigmoids: 1 - sigmoid(logits) would round a small P(0) to zero.
        logits = jnp.asarray(kernel.logits)
        return jnp.stack([jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)], -1)
    probs = jnp.asarray(kernel.probs)
    return jnp.stack([probs, 1 - probs], -1)


def check_fixed_schedule(schedule: AbstractSchedule, process: str) -> None:
    """Check that the schedule of a discrete process is a schedule, and not a learned one.

    Raises:
        TypeError: not a schedule.
        ValueError: a `Learned` schedule.
    """
    check_schedule(schedule)
    if isinstance(schedule, Learned):
        raise ValueError(
            f"{process} cannot learn its schedule: a discrete sample has no derivative with "
            "respect to the noise rate, so the ELBO has no pathwise gradient. Use a fixed "
            "schedule such as schedules.reciprocal(num_steps)."
        )
