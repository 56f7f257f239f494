"""Bernoulli ("binomial") diffusion: bits that forget themselves towards a base rate.

    q(x_t = 1 given x_{t-1}) = (1 - beta_t) x_{t-1} + beta_t pi            (table App. 1)
    q(x_t = 1 given x_0)     = alpha_bar_t x_0 + (1 - alpha_bar_t) pi

The paper's table prints pi = 0.5; its heartbeat needs 0.2, and any rate per bit is allowed.
Because a bit takes two values, `posterior` averaged over an estimate P(x_0 = 1) = f is linear in f
and exact: no family of factorised kernels can do better than the right f.

In a long chain a bit flips back with a probability far below the spacing of float32 near 1, yet the
divergence of two kernels asks for the ratio of such probabilities: kernels backwards in time are
therefore held as log-odds.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from ..checks.arguments import check_instance
from ..checks.arrays import as_numbers, at_fault
from ..schedules import AbstractSchedule, Learned
from .base import AbstractProcess, Time
from .divergence import categorical_kl


@final
class BernoulliEstimate(eqx.Module):
    """Log-odds that x_0 is 1 given x_t, bit by bit."""

    logits: Float[Array, "..."]


@final
class BernoulliDiffusion(AbstractProcess[BernoulliEstimate]):
    """Diffusion of bits towards independent coins.

    Args:
        schedule: the noise levels; `schedules.Reciprocal` is the paper's.
        rate: P(bit = 1) at the end of the chain, in (0, 1): one number, or one per bit (any
            shape that broadcasts against the event). The bound is tightest when it is the
            data's own mean.

    Example:
        >>> import diffppl as dp
        >>> process = dp.BernoulliDiffusion(dp.schedules.Reciprocal(num_steps=2000), rate=0.2)

    References:
        Sohl-Dickstein et al. 2015, sections 2.1 to 2.4, table App. 1 and section D.1.2.
    """

    schedule: AbstractSchedule
    rate: Float[Array, "..."]

    def __init__(self, schedule: AbstractSchedule, rate: ArrayLike = 0.5) -> None:
        check_fixed(schedule, type(self).__name__)
        self.schedule = schedule
        rates = as_numbers("rate", rate)
        # NumPy: a chain is also respaced while a program is traced, where JAX's answer is a tracer.
        if not isinstance(rates, Tracer):
            rates = np.asarray(rates, jnp.result_type(float))
            bad = np.asarray(~((rates > 0) & (rates < 1)))
            if bad.any():
                raise ValueError(f"rate must lie strictly between 0 and 1: {at_fault(bad, rates)}.")
        self.rate = jnp.asarray(rates, dtype=float)

    @property
    def support(self) -> constraints.Constraint:
        """0 or 1."""
        return constraints.boolean

    @property
    def num_categories(self) -> None:
        """Bits are their own encoding."""
        return None

    @property
    def dtype(self) -> Any:
        """Bits are held as the default integer."""
        return jnp.result_type(int)

    def base(self, shape: tuple[int, ...]) -> dist.BernoulliProbs:
        """Independent coins of the base rate."""
        return dist.BernoulliProbs(jnp.broadcast_to(self.rate, shape))

    def _mix(self, x: Array, kept: Array) -> Float[Array, "..."]:
        """P(1) after a share `kept` of the bit is kept and the rest drawn anew."""
        return kept * x + (1 - kept) * self.rate

    def transition(self, x: Array, t: Time) -> dist.BernoulliProbs:
        """q(x_t given x_{t-1} = x)."""
        return dist.BernoulliProbs(self._mix(x, 1 - self.schedule.beta()[t]))

    def marginal(self, x_0: Array, t: Time) -> dist.BernoulliProbs:
        """q(x_t given x_0)."""
        return dist.BernoulliProbs(self._mix(x_0, self.schedule.alpha_bar()[t]))

    def _posterior(self, x_t: Array, x_0: Array, t: Time) -> tuple[Array, Array]:
        """P(x_{t-1} = 1) and P(x_{t-1} = 0) given x_t and x_0, each to all its digits."""
        beta = self.schedule.beta()[t]
        alpha_bar, noise = (
            self.schedule.alpha_bar()[t - 1],
            self.schedule.one_minus_alpha_bar()[t - 1],
        )
        to_one, to_zero = beta * self.rate, beta * (1 - self.rate)
        one = jnp.where(x_t == 1, 1 - to_zero, to_zero) * (alpha_bar * x_0 + noise * self.rate)
        zero = jnp.where(x_t == 1, to_one, 1 - to_one) * (
            alpha_bar * (1 - x_0) + noise * (1 - self.rate)
        )
        return one / (one + zero), zero / (one + zero)

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> dist.BernoulliLogits:
        """q(x_{t-1} given x_t, x_0)."""
        one, zero = self._posterior(x_t, x_0, t)
        return dist.BernoulliLogits(jnp.log(one) - jnp.log(zero))

    def reverse(self, x_t: Array, estimate: BernoulliEstimate, t: Time) -> dist.BernoulliLogits:
        """p(x_{t-1} given x_t): the two posteriors, weighted by the estimate."""
        one_if_1, zero_if_1 = self._posterior(x_t, jnp.ones(()), t)
        one_if_0, zero_if_0 = self._posterior(x_t, jnp.zeros(()), t)
        p_1, p_0 = jax.nn.sigmoid(estimate.logits), jax.nn.sigmoid(-estimate.logits)
        one, zero = p_1 * one_if_1 + p_0 * one_if_0, p_1 * zero_if_1 + p_0 * zero_if_0
        return dist.BernoulliLogits(jnp.log(one) - jnp.log(zero))

    def final_step(self, x_1: Array, estimate: BernoulliEstimate) -> dist.BernoulliProbs:
        """The paper's fixed last step, T_pi(x_0 given x_1; beta_1): it has no parameters."""
        del estimate
        return self.transition(x_1, 1)

    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."]:
        """The two values of x_1, weighted by their probabilities."""
        rate = self._mix(x_0, 1 - self.schedule.beta()[1])
        given_1 = self.transition(jnp.ones(()), 1).log_prob(x_0)
        given_0 = self.transition(jnp.zeros(()), 1).log_prob(x_0)
        return rate * jnp.asarray(given_1) + (1 - rate) * jnp.asarray(given_0)

    def mean(self, estimate: BernoulliEstimate) -> Float[Array, "..."]:
        """P(x_0 = 1)."""
        return jax.nn.sigmoid(estimate.logits)

    def estimate_from_logits(self, logits: Array) -> BernoulliEstimate:
        """The logits themselves."""
        return BernoulliEstimate(logits)

    def kl(
        self,
        q: dist.BernoulliProbs | dist.BernoulliLogits,
        p: dist.BernoulliProbs | dist.BernoulliLogits,
    ) -> Float[Array, "..."]:
        """KL between coins, in nats (NumPyro 0.22 has none)."""
        return categorical_kl(_both(q), _both(p))

    def with_schedule(self, schedule: AbstractSchedule) -> "BernoulliDiffusion":
        """The same process on other noise levels."""
        return BernoulliDiffusion(schedule, self.rate)


def _both(coin: dist.BernoulliProbs | dist.BernoulliLogits) -> Float[Array, "... 2"]:
    """P(1) and P(0)."""
    if isinstance(coin, dist.BernoulliLogits):
        logits = jnp.asarray(coin.logits)
        return jnp.stack([jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)], -1)
    probs = jnp.asarray(coin.probs)
    return jnp.stack([probs, 1 - probs], -1)


def check_fixed(schedule: AbstractSchedule, process: str) -> None:
    """Refuse a learned schedule where the noise is discrete, and what is no schedule."""
    check_instance("schedule", schedule, AbstractSchedule)
    if isinstance(schedule, Learned):
        raise ValueError(  # noqa: TRY004 (two fields that do not suit each other)
            f"{process} cannot learn its schedule: a discrete sample has no derivative with "
            "respect to the noise rate, so the ELBO's gradient cannot reach it. Use a fixed "
            "schedule such as schedules.Reciprocal(num_steps)."
        )
