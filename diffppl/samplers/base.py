"""The interface of samplers."""

import abc

import equinox as eqx
from jaxtyping import Array, Int

from ..checks.arguments import check_fields
from ..model import DiffusionModel
from ..model.ancestral import SamplerState, run_chain


class AbstractSampler(eqx.Module):
    """A sampler of x_0 from x_T; most are subclasses of `AbstractChainSampler`."""

    def __check_init__(self) -> None:
        check_fields(self)

    @abc.abstractmethod
    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        """Return the model at the levels that the sampler visits.

        Raises:
            ValueError: the sampler does not support the model.
        """

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
            model: a model returned by `prepare`.
            x_T: draws from the base, shape `(*batch, *event_shape)`.
            context: shape `(*context_batch, *context_shape)`, broadcast against the batch.
            keep_path: whether to return the path.

        Returns:
            x_0, and x_T, .., x_1, x_0 on a new leading axis, or None without `keep_path`.
        """


class AbstractChainSampler(AbstractSampler):
    """A sampler that visits every level: steps t -> t - 1 for t = T..2, then a final step.

    To add one, subclass this, mark it `typing.final`, implement `prepare`, `init`, `step` and
    `last`, and add a row to the tests' registry.
    """

    num_steps: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def init(self, x_T: Array) -> SamplerState:
        """Return the state before the first step."""

    @abc.abstractmethod
    def step(
        self,
        key: Array,
        model: DiffusionModel,
        state: SamplerState,
        t: Int[Array, ""],
        context: Array | None,
    ) -> SamplerState:
        """Step from x_t to x_{t-1}, for a traced t in 2..T."""

    @abc.abstractmethod
    def last(
        self, key: Array, model: DiffusionModel, state: SamplerState, context: Array | None
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
            self.init(x_T.astype(model.process.dtype)),
            lambda key, state, t: self.step(key, model, state, t, context),
            lambda key, state: self.last(key, model, state, context),
            keep_path=keep_path,
        )


def require_real(sampler: AbstractSampler, model: DiffusionModel) -> None:
    """Raise ValueError for a model of discrete data."""
    if model.process.support.is_discrete:
        raise ValueError(
            f"sampler={type(sampler).__name__} is for real data, but the model has "
            f"{type(model.process).__name__}; Ancestral() is the sampler for discrete data."
        )
