"""Abstract base class of forward processes."""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint

from ..checks.arguments import Time
from ..schedules import AbstractSchedule, check_schedule

E = TypeVar("E")


class AbstractProcess(eqx.Module, Generic[E]):
    """A forward chain q and its reverse kernels.

    Coordinates may have any shape: a method returns a NumPyro distribution whose batch and event
    shapes together are the shape of its `x`. Times are single integers in 1..T.

    The *estimate* `E` is a pytree with the parameters of p(x_0 | x_t), as predicted by a network;
    its fields depend on the process (a mean and a variance; logits). `reverse` returns its kernel.

    To add a process, subclass this, mark it `typing.final`, implement the abstract methods, and
    add a row to the tests' registry, whose tests check the kernels against one another.
    """

    schedule: eqx.AbstractVar[AbstractSchedule]

    def __check_init__(self) -> None:
        check_schedule(self.schedule)

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    @property
    @abc.abstractmethod
    def support(self) -> Constraint:
        """Support of one coordinate of x_0, as a NumPyro constraint."""

    @property
    @abc.abstractmethod
    def num_categories(self) -> int | None:
        """Number of states of a categorical coordinate of x_0; None for real and binary data.

        The largest number, if coordinates differ.
        """

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Dtype of the states x_0, ..., x_T."""

    @abc.abstractmethod
    def base(self, shape: tuple[int, ...]) -> Distribution:
        """Return pi, the stationary distribution, over coordinates of the given shape (eq. 1)."""

    @abc.abstractmethod
    def transition(self, x: Array, t: Time) -> Distribution:
        """Return q(x_t | x_{t-1} = x) (eq. 2)."""

    @abc.abstractmethod
    def marginal(self, x_0: Array, t: Time) -> Distribution:
        """Return q(x_t | x_0)."""

    @abc.abstractmethod
    def posterior(self, x_t: Array, x_0: Array, t: Time) -> Distribution:
        """Return q(x_{t-1} | x_t, x_0), for t >= 2."""

    @abc.abstractmethod
    def reverse(self, x_t: Array, estimate: E, t: Time) -> Distribution:
        """Return p(x_{t-1} | x_t): `posterior` averaged over the estimate of x_0, for t >= 2."""

    @abc.abstractmethod
    def final_step(self, x_1: Array, estimate: E) -> Distribution:
        """Return p(x_0 | x_1), the last reverse step (appendix B.2, eq. 44)."""

    @abc.abstractmethod
    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."] | None:
        """Return E over q(x_1 | x_0) of log p(x_0 | x_1), per coordinate, in nats.

        None if `final_step` depends on the estimate, in which case the expectation is sampled.
        """

    @abc.abstractmethod
    def mean(self, estimate: E) -> Float[Array, "..."]:
        """Return E[x_0] under an estimate; for categories, probabilities on a trailing axis."""

    @abc.abstractmethod
    def estimate_from_logits(self, logits: Array) -> E:
        """Return the estimate with the given logits of x_0; raises a TypeError for real data."""

    @abc.abstractmethod
    def kl(self, q: Distribution, p: Distribution) -> Float[Array, "..."]:
        """Return KL(q || p), per coordinate, in nats, for two kernels of this process."""

    @abc.abstractmethod
    def with_schedule(self, schedule: AbstractSchedule) -> "AbstractProcess[E]":
        """Return the same process with another schedule."""
