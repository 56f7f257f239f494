"""Categorical diffusion, in which states are redrawn from a base distribution.

    q(x_t = j | x_{t-1} = i) = (1 - beta_t) [i = j] + beta_t pi_j
    q(x_t = j | x_0 = i)     = alpha_bar_t [i = j] + (1 - alpha_bar_t) pi_j

A uniform pi randomises the states; a pi concentrated on one extra state, the mask, absorbs them.
The other kernels follow from Bayes' rule, in O(number of states) per coordinate.

Coordinates may have different numbers of categories. All are then stored with the largest number of
states, and the surplus states of a coordinate are *padding*: they have probability zero in the
base, in every kernel and in every estimate, whatever the output of the network.

References:
    Hoogeboom et al. 2021 (uniform); Austin et al. 2021, section 3 (absorbing), who generalise
    the binomial diffusion of Sohl-Dickstein et al. 2015.
"""

import abc
from collections.abc import Sequence
from typing import final

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
from .bernoulli import check_fixed_schedule
from .counts import Counts, check_counts, is_state
from .divergence import categorical_kl


class AbstractBase(eqx.Module):
    """Stationary distribution of a categorical chain."""

    @abc.abstractmethod
    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        """Return pi over the states of the chain, of which the first K are those of the data.

        Args:
            num_categories: K; or one for each coordinate, of which the largest is K. States from a
                coordinate's own number up to K - 1 have probability 0.
        """


@final
class Uniform(AbstractBase):
    """Uniform distribution over the categories."""

    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        return jnp.asarray(is_state(num_categories) / np.expand_dims(num_categories, -1), float)


@final
class Absorbing(AbstractBase):
    """Point mass on one additional state, the mask, of index `num_categories`; data never take it.

    If coordinates have different numbers of categories, the index is the largest of them.
    """

    def probs(self, num_categories: Counts) -> Float[Array, "*counts states"]:
        states = int(np.max(num_categories)) + 1
        return jnp.zeros((*np.shape(num_categories), states)).at[..., -1].set(1.0)


@final
class CategoricalEstimate(eqx.Module):
    """Unnormalised log P(x_0 = k | x_t), on a trailing axis of categories."""

    logits: Float[Array, "... categories"]


@final
class States(dist.CategoricalProbs):
    """`CategoricalProbs` that never draws a state of probability 0.

    NumPyro's own sampler returns state 0 once in 2^23 draws, whatever its probability.
    """

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """Draw by inversion of the distribution function."""
        cdf = jnp.cumsum(jnp.asarray(self.probs), axis=-1)
        cdf = cdf[..., :-1] / cdf[..., -1:]
        shape = (*sample_shape, *self.batch_shape, 1)
        # 1 - uniform lies in (0, 1]: at 0 the inverse would be state 0.
        return jnp.sum(cdf < 1 - jax.random.uniform(key, shape, cdf.dtype), axis=-1)


# Largest range of the logits of one coordinate. A network in training may give the true state a
# probability near 0. In an absorbing chain the ELBO contains the whole log-probability, whose
# gradient has the square of the probability: both must be representable in float32.
MAX_LOGIT_RANGE = 30.0


@final
class CategoricalDiffusion(AbstractProcess[CategoricalEstimate]):
    """Diffusion of categories 0..`num_categories` - 1.

    Args:
        schedule: the noise levels. An absorbing chain requires alpha_bar_T = 0, as in
            `schedules.reciprocal`: otherwise x_T is not fully masked.
        num_categories: K >= 2; or one for each coordinate, such as `(2, 3, 5)`, of any shape that
            broadcasts against the event. Networks then have inputs and outputs for the largest, 5.
        base: `Uniform()` or `Absorbing()`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: fewer than 2 categories, numbers that are not whole, or an absorbing chain with
            alpha_bar_T > 0.

    Example:
        >>> import diffppl as dp
        >>> process = dp.CategoricalDiffusion(
        ...     dp.schedules.reciprocal(num_steps=100), num_categories=5, base=dp.Absorbing()
        ... )
    """

    schedule: AbstractSchedule
    categories: int | tuple = eqx.field(static=True)  # nested tuples of ints: hashable
    base_distribution: AbstractBase

    def __init__(
        self,
        schedule: AbstractSchedule,
        num_categories: int | Sequence | np.ndarray | Array,
        base: AbstractBase = Uniform(),
    ) -> None:
        check_fixed_schedule(schedule, type(self).__name__)
        check_instance("base", base, AbstractBase)
        last = schedule.alpha_bar()[-1]
        if isinstance(base, Absorbing) and not isinstance(last, Tracer) and float(last) > 0:
            raise ValueError(
                f"schedule ends with alpha_bar_T = {float(last):.3g}; an absorbing chain must end "
                "with alpha_bar_T = 0, all states masked. Use schedules.reciprocal(num_steps)."
            )
        self.schedule = schedule
        self.categories = check_counts(num_categories)
        self.base_distribution = base

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.counts - 1)

    @property
    def counts(self) -> Counts:
        """Number of categories: an int, or an array with one for each coordinate."""
        return self.categories if isinstance(self.categories, int) else np.array(self.categories)

    @property
    def num_categories(self) -> int:
        """K, the largest number of categories of any coordinate, without the mask."""
        return int(np.max(self.counts))

    @property
    def num_states(self) -> int:
        """Number of states of the chain: K, or K + 1 with a mask."""
        return self._pi.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        return jnp.result_type(int)

    @property
    def _pi(self) -> Float[Array, "*counts states"]:
        return self.base_distribution.probs(self.counts)

    @property
    def _is_possible(self) -> Bool[np.ndarray, "*counts categories"]:
        """Which of the states 0..K-1 each coordinate has; the others are padding."""
        return is_state(self.counts)

    def base(self, shape: tuple[int, ...]) -> States:
        return States(jnp.broadcast_to(self._pi, (*shape, self.num_states)))

    def _one_hot(self, x: Array) -> Float[Array, "... states"]:
        return jax.nn.one_hot(x, self.num_states)

    def _rate(self, x: Array) -> Float[Array, "... one"]:
        """Return pi of each state in `x`, with a trailing axis of length 1."""
        return jnp.sum(self._one_hot(x) * self._pi, axis=-1, keepdims=True)

    def _mix(self, x: Array, kept: Array) -> Float[Array, "... states"]:
        return kept * self._one_hot(x) + (1 - kept) * self._pi

    def transition(self, x: Array, t: Time) -> States:
        return States(self._mix(x, 1 - self.schedule.beta()[t]))

    def marginal(self, x_0: Array, t: Time) -> States:
        return States(self._mix(x_0, self.schedule.alpha_bar()[t]))

    def _likelihood(self, x_t: Array, t: Time) -> Float[Array, "... states"]:
        """Return q(x_t | x_{t-1} = j) for every j."""
        beta = self.schedule.beta()[t]
        return (1 - beta) * self._one_hot(x_t) + beta * self._rate(x_t)

    def posterior(self, x_t: Array, x_0: Array, t: Time) -> States:
        joint = self._likelihood(x_t, t) * self._mix(x_0, self.schedule.alpha_bar()[t - 1])
        return self._normalised(joint)

    def _x_0_weights(self, x_t: Array, estimate: CategoricalEstimate, t: Time) -> Array:
        """Return P(x_0 = k) / q(x_t | x_0 = k), and 0 where q(x_t | x_0 = k) = 0."""
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        likelihood = alpha_bar * self._one_hot(x_t) + noise * self._rate(x_t)
        likelihood = likelihood[..., : self.num_categories]
        possible = (likelihood > 0) & self._is_possible
        probs = jax.nn.softmax(estimate.logits, axis=-1, where=possible)
        return jnp.where(possible, probs / jnp.where(possible, likelihood, 1.0), 0.0)

    def reverse(self, x_t: Array, estimate: CategoricalEstimate, t: Time) -> States:
        """Return the posteriors for the K values of x_0, weighted by the estimate."""
        weights = self._x_0_weights(x_t, estimate, t)
        alpha_bar, noise = (
            self.schedule.alpha_bar()[t - 1],
            self.schedule.one_minus_alpha_bar()[t - 1],
        )
        masked = self.num_states - self.num_categories
        padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, masked)])
        # sum_k w_k q(x_{t-1} | x_0 = k), in O(K): each kernel is a point mass and a multiple of pi.
        prior = alpha_bar * padded + noise * self._pi * weights.sum(-1, keepdims=True)
        joint = self._likelihood(x_t, t) * prior
        return self._normalised(joint)

    def final_step(self, x_1: Array, estimate: CategoricalEstimate) -> States:
        """Return the fixed T_pi(x_0 | x_1; beta_1) for a uniform base.

        An absorbing chain has no reverse kernel of that form (no state leaves the mask), so its
        final step is the estimate itself, and is learned.
        """
        if isinstance(self.base_distribution, Absorbing):
            weights = self._x_0_weights(x_1, estimate, 1)
            joint = self._likelihood(x_1, 1)[..., : self.num_categories] * weights
            return self._normalised(joint)
        return self.transition(x_1, 1)

    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."] | None:
        """Return the sum over the K values of x_1; None for an absorbing base."""
        if isinstance(self.base_distribution, Absorbing):
            return None
        # q(x_1 | x_0), which is also p(x_0 | x_1): the uniform transition is symmetric.
        probs = self._mix(x_0, 1 - self.schedule.beta()[1])
        return jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)

    def mean(self, estimate: CategoricalEstimate) -> Float[Array, "... categories"]:
        logits = jnp.where(self._is_possible, estimate.logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=-1)

    def estimate_from_logits(self, logits: Array) -> CategoricalEstimate:
        """Return the logits, clipped from below at `MAX_LOGIT_RANGE` less than the largest.

        Logits of minus infinity are kept, and padding is set to it. The gradient is that of the
        identity.
        """
        logits = jnp.where(self._is_possible, logits, -jnp.inf)
        least = jnp.max(logits, axis=-1, keepdims=True) - MAX_LOGIT_RANGE
        change = jnp.where(jnp.isneginf(logits), 0.0, jnp.maximum(least - logits, 0.0))
        return CategoricalEstimate(logits + jax.lax.stop_gradient(change))

    def kl(self, q: States, p: States) -> Float[Array, "..."]:
        return categorical_kl(jnp.asarray(q.probs), jnp.asarray(p.probs))

    def with_schedule(self, schedule: AbstractSchedule) -> "CategoricalDiffusion":
        return CategoricalDiffusion(schedule, self.counts, self.base_distribution)

    def _normalised(self, joint: Float[Array, "... states"]) -> States:
        """Normalise `joint`; uniform where it is all zero, at an x_t of probability zero."""
        own, extra = self._is_possible, joint.shape[-1] - self.num_categories
        states = np.concatenate([own, np.ones((*own.shape[:-1], extra), bool)], axis=-1)
        total = joint.sum(-1, keepdims=True)
        possible = total > 0
        uniform = jnp.asarray(states / states.sum(-1, keepdims=True), joint.dtype)
        return States(jnp.where(possible, joint / jnp.where(possible, total, 1.0), uniform))
