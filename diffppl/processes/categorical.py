"""Categorical diffusion: states that are redrawn from a base distribution.

    q(x_t = j given x_{t-1} = i) = (1 - beta_t) [i = j] + beta_t pi_j
    q(x_t = j given x_0 = i)     = alpha_bar_t [i = j] + (1 - alpha_bar_t) pi_j

With pi uniform a state is scrambled; with pi concentrated on one extra state, the mask, it is
absorbed. Bayes' rule gives everything else, in O(number of states) per coordinate.

Coordinates may have different numbers of categories. All are then held in as many states as the
largest number needs, and the states that a coordinate does not have are *padding*: of probability
zero in the base, in every kernel and in every estimate, whatever a network says of them.

References:
    Hoogeboom et al. 2021 (uniform); Austin et al. 2021, section 3 (absorbing), who generalise
    the binomial diffusion of Sohl-Dickstein et al. 2015.
"""

import abc
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import constraints

from ..checks.arguments import check_instance
from ..schedules import AbstractSchedule
from .base import AbstractProcess, Time
from .bernoulli import check_fixed
from .counts import Counts, checked_counts, is_state
from .divergence import categorical_kl


class AbstractBase(eqx.Module):
    """Where the states of a categorical chain end."""

    @abc.abstractmethod
    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        """Rates pi over the chain's states, of which the first `num_categories` are the data's.

        Args:
            num_categories: K; or one for each coordinate, of which the largest is K. States from a
                coordinate's own number up to K - 1 have rate 0.
        """


@final
class Uniform(AbstractBase):
    """Every category equally likely."""

    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        """1/K each."""
        return jnp.asarray(is_state(num_categories) / np.expand_dims(num_categories, -1), float)


@final
class Absorbing(AbstractBase):
    """One further state, the mask, numbered `num_categories`, which data never take.

    Where coordinates have different numbers of categories, the largest is the mask's number.
    """

    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        """All on the mask."""
        states = int(np.max(num_categories)) + 1
        return jnp.zeros((*np.shape(num_categories), states)).at[..., -1].set(1.0)


@final
class CategoricalEstimate(eqx.Module):
    """Unnormalised log-probabilities of x_0 given x_t, on a trailing axis of categories."""

    logits: Float[Array, "... categories"]


@final
class States(dist.CategoricalProbs):
    """`CategoricalProbs` whose draws are possible: NumPyro's takes state 0 once in 2^23 draws."""

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """By the inverse of the distribution function, at a number in (0, 1]."""
        up_to = jnp.cumsum(jnp.asarray(self.probs), axis=-1)
        up_to = up_to[..., :-1] / up_to[..., -1:]
        shape = (*sample_shape, *self.batch_shape, 1)
        return jnp.sum(up_to < 1 - jax.random.uniform(key, shape, up_to.dtype), axis=-1)


# A network in training may say that what happens is all but impossible. In an absorbing chain it
# pays the whole log-probability, whose gradient squares it: both must be numbers in float32.
WIDEST = 30.0


@final
class CategoricalDiffusion(AbstractProcess[CategoricalEstimate]):
    """Diffusion of categories 0..`num_categories` - 1.

    Args:
        schedule: the noise levels. An absorbing chain must end with alpha_bar_T = 0, as
            `schedules.Reciprocal` does: otherwise the end of the chain is not the mask.
        num_categories: K >= 2; or one for each coordinate, such as `(2, 3, 5)`, of any shape that
            broadcasts against the event. Networks then take and return the largest, K = 5.
        base: `Uniform()` or `Absorbing()`.

    Raises:
        TypeError: another kind of argument.
        ValueError: fewer than 2 categories, or numbers that are not whole.

    Example:
        >>> import diffppl as dp
        >>> process = dp.CategoricalDiffusion(
        ...     dp.schedules.Reciprocal(num_steps=100), num_categories=5, base=dp.Absorbing()
        ... )
    """

    schedule: AbstractSchedule
    categories: Any = eqx.field(static=True)  # an int, or tuples of them, which can be hashed
    base_kind: AbstractBase

    def __init__(
        self,
        schedule: AbstractSchedule,
        num_categories: int | Sequence[Any] | np.ndarray | Array,
        base: AbstractBase = Uniform(),  # noqa: B008 (immutable)
    ) -> None:
        check_fixed(schedule, type(self).__name__)
        check_instance("base", base, AbstractBase)
        last = schedule.alpha_bar()[-1]
        if isinstance(base, Absorbing) and not isinstance(last, Tracer) and float(last) > 0:
            raise ValueError(
                f"schedule ends with alpha_bar_T = {float(last):.3g}; an absorbing chain must end "
                "with alpha_bar_T = 0, all states masked. Use schedules.Reciprocal(num_steps)."
            )
        self.schedule = schedule
        self.categories = checked_counts(num_categories)
        self.base_kind = base

    @property
    def support(self) -> constraints.Constraint:
        """0..K-1."""
        return constraints.integer_interval(0, self.counts - 1)

    @property
    def counts(self) -> Counts:
        """The number of categories: one, or an array of one for each coordinate."""
        return self.categories if isinstance(self.categories, int) else np.array(self.categories)

    @property
    def num_categories(self) -> int:
        """K, the most categories of any coordinate (an absorbing chain has one state more)."""
        return int(np.max(self.counts))

    @property
    def num_states(self) -> int:
        """States of the chain: K, or K + 1 with a mask."""
        return self._pi.shape[-1]

    @property
    def dtype(self) -> Any:
        """Categories are held as the default integer."""
        return jnp.result_type(int)

    @property
    def _pi(self) -> Float[Array, "*counts states"]:
        return self.base_kind.probs(self.counts)

    @property
    def _is_possible(self) -> Bool[np.ndarray, "*counts categories"]:
        """Which of the states 0..K-1 are a coordinate's own, and not padding."""
        return is_state(self.counts)

    def base(self, shape: tuple[int, ...]) -> States:
        """Independent draws from pi."""
        return States(jnp.broadcast_to(self._pi, (*shape, self.num_states)))

    def _one_hot(self, x: Array) -> Float[Array, "... states"]:
        return jax.nn.one_hot(x, self.num_states)

    def _rate(self, x: Array) -> Float[Array, "... one"]:
        """pi of each state in `x`, with an axis of 1 at the end."""
        return jnp.sum(self._one_hot(x) * self._pi, axis=-1, keepdims=True)

    def _mix(self, x: Array, kept: Array) -> Float[Array, "... states"]:
        return kept * self._one_hot(x) + (1 - kept) * self._pi

    def transition(self, x: Array, t: Time) -> States:
        """q(x_t given x_{t-1} = x)."""
        return States(self._mix(x, 1 - self.schedule.beta()[t]))

    def marginal(self, x_0: Array, t: Time) -> States:
        """q(x_t given x_0)."""
        return States(self._mix(x_0, self.schedule.alpha_bar()[t]))

    def _likelihood(self, x_t: Array, t: Time) -> Float[Array, "... states"]:
        """q(x_t given x_{t-1} = j) for every j."""
        beta = self.schedule.beta()[t]
        return (1 - beta) * self._one_hot(x_t) + beta * self._rate(x_t)

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> States:
        """q(x_{t-1} given x_t, x_0)."""
        joint = self._likelihood(x_t, t) * self._mix(x_0, self.schedule.alpha_bar()[t - 1])
        return self._normalised(joint)

    def _explained(self, x_t: Array, estimate: CategoricalEstimate, t: Time) -> Array:
        """P(x_0 = k) / q(x_t given x_0 = k), and 0 where x_t rules k out."""
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        reach = alpha_bar * self._one_hot(x_t) + noise * self._rate(x_t)
        reach = reach[..., : self.num_categories]
        possible = (reach > 0) & self._is_possible
        probs = jax.nn.softmax(estimate.logits, axis=-1, where=possible)
        return jnp.where(possible, probs / jnp.where(possible, reach, 1.0), 0.0)

    def reverse(self, x_t: Array, estimate: CategoricalEstimate, t: Time) -> States:
        """p(x_{t-1} given x_t): the K posteriors, weighted by the estimate."""
        weights = self._explained(x_t, estimate, t)
        alpha_bar, noise = (
            self.schedule.alpha_bar()[t - 1],
            self.schedule.one_minus_alpha_bar()[t - 1],
        )
        masked = self.num_states - self.num_categories
        padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, masked)])
        prior = alpha_bar * padded + noise * self._pi * weights.sum(-1, keepdims=True)
        joint = self._likelihood(x_t, t) * prior
        return self._normalised(joint)

    def final_step(self, x_1: Array, estimate: CategoricalEstimate) -> States:
        """p(x_0 given x_1): the fixed T_pi(x_0 given x_1; beta_1) for a uniform base.

        An absorbing chain has no reverse of that form (nothing leaves the mask), so its last
        step is the estimate itself, and is learned.
        """
        if isinstance(self.base_kind, Absorbing):
            weights = self._explained(x_1, estimate, 1)
            joint = self._likelihood(x_1, 1)[..., : self.num_categories] * weights
            return self._normalised(joint)
        return self.transition(x_1, 1)

    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."] | None:
        """The K values of x_1, weighted; None for an absorbing base, whose edge is learned."""
        if isinstance(self.base_kind, Absorbing):
            return None
        reached = self._mix(x_0, 1 - self.schedule.beta()[1])  # also p(x_1 -> x_0): symmetric
        return jnp.sum(jax.scipy.special.xlogy(reached, reached), axis=-1)

    def mean(self, estimate: CategoricalEstimate) -> Float[Array, "... categories"]:
        """P(x_0 = k), on a trailing axis."""
        logits = jnp.where(self._is_possible, estimate.logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1)

    def estimate_from_logits(self, logits: Array) -> CategoricalEstimate:
        """The logits, none of which is further below the largest than `WIDEST`.

        What is ruled out (minus infinity) stays so, and so is padding. Gradients pass as if nothing
        had been done.
        """
        logits = jnp.where(self._is_possible, logits, -jnp.inf)
        least = jnp.max(logits, axis=-1, keepdims=True) - WIDEST
        change = jnp.where(jnp.isneginf(logits), 0.0, jnp.maximum(least - logits, 0.0))
        return CategoricalEstimate(logits + jax.lax.stop_gradient(change))

    def kl(self, q: States, p: States) -> Float[Array, "..."]:
        """KL between categorical kernels, in nats."""
        return categorical_kl(jnp.asarray(q.probs), jnp.asarray(p.probs))

    def with_schedule(self, schedule: AbstractSchedule) -> "CategoricalDiffusion":
        """The same process on other noise levels."""
        return CategoricalDiffusion(schedule, self.counts, self.base_kind)

    def _normalised(self, joint: Float[Array, "... states"]) -> States:
        """Probabilities; uniform where nothing is possible, as at an x_t that no path reaches."""
        own, extra = self._is_possible, joint.shape[-1] - self.num_categories
        states = np.concatenate([own, np.ones((*own.shape[:-1], extra), bool)], axis=-1)
        total = joint.sum(-1, keepdims=True)
        reached = total > 0
        anything = jnp.asarray(states / states.sum(-1, keepdims=True), joint.dtype)
        return States(jnp.where(reached, joint / jnp.where(reached, total, 1.0), anything))
