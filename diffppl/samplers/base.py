"""The interface of samplers."""

import abc

import equinox as eqx
from jaxtyping import Array

from ..checks.arguments import check_fields
from ..model import DiffusionModel
from ..model.ancestral import SamplerState, run_chain
from ..processes.base import Time
from ..processes.support import check_real


class AbstractSampler(eqx.Module):
    """A sampler of x_0 from x_T; most are subclasses of `AbstractChainSampler`."""

    supports_discrete: eqx.AbstractClassVar[bool]

    def __check_init__(self) -> None:
        check_fields(self)

    def check(self, model: DiffusionModel) -> None:
        """Raise ValueError for a model of discrete data, unless the sampler supports it."""
        if not self.supports_discrete:
            name, remedy = type(self).__name__, "; Ancestral() is the sampler for discrete data"
            check_real(f"sampler={name}", model.process, remedy, subject="the model has")

    @abc.abstractmethod
    def draw(
        self,
        key: Array,
        model: DiffusionModel,
        x_T: Array,
        context: Array | None,
        *,
        keep_path: bool,
    ) -> tuple[Array, Array | None]:
        """Draw x_0 in model units.

        Args:
            key: a typed JAX key.
            model: a model that passes `check`.
            x_T: draws from the base, shape `(*batch, *event_shape)`.
            context: shape `(*context_batch, *context_shape)`, broadcast against the batch.
            keep_path: whether to return the path.

        Returns:
            x_0, and x_T, .., x_1, x_0 on a new leading axis, or None without `keep_path`.
        """


class AbstractChainSampler(AbstractSampler):
    """A sampler that visits every level: steps t -> t - 1 for t = T..2, then a final step.

    To add one, subclass this, mark it `typing.final`, implement `step` and `final_step`, and add
    a row to the tests' registry.
    """

    @abc.abstractmethod
    def step(
        self, key: Array, model: DiffusionModel, state: SamplerState, t: Time, context: Array | None
    ) -> SamplerState:
        """Step from x_t to x_{t-1}, for a traced t in 2..T."""

    @abc.abstractmethod
    def final_step(
        self, key: Array, model: DiffusionModel, x_1: Array, context: Array | None
    ) -> Array:
        """Step from x_1 to x_0."""

    def draw(
        self,
        key: Array,
        model: DiffusionModel,
        x_T: Array,
        context: Array | None,
        *,
        keep_path: bool,
    ) -> tuple[Array, Array | None]:
        return run_chain(
            key,
            model,
            x_T,
            lambda key, state, t: self.step(key, model, state, t, context),
            lambda key, x_1: self.final_step(key, model, x_1, context),
            keep_path=keep_path,
        )
