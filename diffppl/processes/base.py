"""What every forward process must say."""

import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Int
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint

from ..checks.arguments import check_fields
from ..schedules import AbstractSchedule

Time = int | Int[Array, ""]
E = TypeVar("E")


class AbstractProcess(eqx.Module, Generic[E]):
    """A forward chain q, and the reverse kernels that its kind of data allows.

    Coordinates may have any shape: a method returns a NumPyro distribution whose batch shape
    and event shape together are the shape of its `x`. Times are single integers in 1..T.

    What a network says about x_0 after looking at x_t is an *estimate*, a pytree whose meaning
    only the process knows (a mean and a variance; logits). `reverse` turns it into a kernel.

    To add a process, subclass this, mark it `typing.final`, implement the abstract methods, and
    add a row to the tests' registry: the kernels are then held against each other.
    """

    schedule: eqx.AbstractVar[AbstractSchedule]

    def __check_init__(self) -> None:
        check_fields(self)

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    @property
    @abc.abstractmethod
    def support(self) -> Constraint:
        """Where one coordinate of x_0 lives, as a NumPyro constraint."""

    @property
    @abc.abstractmethod
    def num_categories(self) -> int | None:
        """States of one coordinate of x_0 if it is categorical; None for numbers and bits.

        The most that any coordinate has, where their numbers differ.
        """

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The dtype that data are brought to."""

    @abc.abstractmethod
    def base(self, shape: tuple[int, ...]) -> Distribution:
        """pi, the stationary distribution, over coordinates of the given shape (eq. 1)."""

    @abc.abstractmethod
    def transition(self, x: Array, t: Time) -> Distribution:
        """q(x_t given x_{t-1} = x) (eq. 2)."""

    @abc.abstractmethod
    def marginal(self, x_0: Array, t: Time) -> Distribution:
        """q(x_t given x_0)."""

    @abc.abstractmethod
    def posterior(self, x_t: Array, x_0: Array, t: Time) -> Distribution:
        """q(x_{t-1} given x_t, x_0), for t >= 2."""

    @abc.abstractmethod
    def reverse(self, x_t: Array, estimate: E, t: Time) -> Distribution:
        """p(x_{t-1} given x_t): `posterior` averaged over the estimate of x_0, for t >= 2."""

    @abc.abstractmethod
    def final_step(self, x_1: Array, estimate: E) -> Distribution:
        """p(x_0 given x_1), the last reverse step (appendix B.2, eq. 44)."""

    @abc.abstractmethod
    def expected_final_log_prob(self, x_0: Array) -> Float[Array, "..."] | None:
        """E over q(x_1 given x_0) of log p(x_0 given x_1), coordinate by coordinate, in nats.

        None where `edge` depends on the estimate, so that it must be sampled.
        """

    @abc.abstractmethod
    def mean(self, estimate: E) -> Float[Array, "..."]:
        """E[x_0] under an estimate; probabilities (with a trailing axis) for categories."""

    @abc.abstractmethod
    def estimate_from_logits(self, logits: Array) -> E:
        """The estimate that logits of x_0 make; TypeError for real data."""

    @abc.abstractmethod
    def kl(self, q: Distribution, p: Distribution) -> Float[Array, "..."]:
        """KL(q, p) in nats, coordinate by coordinate, for two kernels of this process."""

    @abc.abstractmethod
    def with_schedule(self, schedule: AbstractSchedule) -> "AbstractProcess[E]":
        """The same process on other noise levels."""
