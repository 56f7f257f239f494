"""What every sampler must say, and the loop that they share."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..checks.arguments import check_fields
from ..model import DiffusionModel


class SamplerState(NamedTuple):
    """Where a chain is: x_t, and what the sampler remembers of the steps before."""

    x: Array
    memory: Any


class AbstractSampler(eqx.Module):
    """A way from x_T to x_0. Subclasses give `prepare` and `draw`; most are chains, see below."""

    def __check_init__(self) -> None:
        check_fields(self)

    @abc.abstractmethod
    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        """The model with the steps this sampler takes; ValueError if it cannot sample it."""

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
        """x_0 in model units, and x_T, .., x_1, x_0 on a new leading axis if it is to be kept.

        Args:
            key: a typed JAX key.
            model: as `prepare` returned it.
            x_T: draws from the base, shape `(*batch, *event_shape)`.
            context: shape `(*context_batch, *context_shape)`, broadcast against the batch.
            keep_path: whether to keep the path.
        """


class AbstractChainSampler(AbstractSampler):
    """A sampler that visits every level: steps t -> t - 1 for t = T..2, then a last step.

    To add one, subclass this, mark it `typing.final`, implement `prepare`, `init`, `step` and
    `last`, and add a row to the tests' registry.
    """

    num_steps: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def init(self, x_T: Array) -> SamplerState:
        """The state before the first step."""

    @abc.abstractmethod
    def step(
        self,
        key: Array,
        model: DiffusionModel,
        state: SamplerState,
        t: Int[Array, ""],
        context: Array | None,
    ) -> SamplerState:
        """From x_t to x_{t-1}, for a traced t in 2..T."""

    @abc.abstractmethod
    def last(
        self, key: Array, model: DiffusionModel, state: SamplerState, context: Array | None
    ) -> Array:
        """From x_1 to x_0."""

    def draw(
        self,
        key: Array,
        model: DiffusionModel,
        x_T: Array,
        context: Array | None,
        *,
        keep_path: bool,
    ) -> tuple[Array, Array | None]:
        dtype = model.process.dtype
        key_steps, key_last = jax.random.split(key)

        def step(state: SamplerState, inputs: tuple[Array, Array]) -> tuple[SamplerState, Any]:
            key, t = inputs
            state = self.step(key, model, state, t, context)
            state = state._replace(x=state.x.astype(dtype))
            return state, state.x if keep_path else None

        x_T = x_T.astype(dtype)
        times = jnp.arange(model.num_steps, 1, -1)
        keys = jax.random.split(key_steps, len(times))
        state, xs = jax.lax.scan(step, self.init(x_T), (keys, times))
        x_0 = self.last(key_last, model, state, context).astype(dtype)
        return x_0, jnp.concatenate([x_T[None], xs, x_0[None]]) if keep_path else None


def respaced(model: DiffusionModel, num_steps: int | None) -> DiffusionModel:
    """The model at `num_steps` of its levels; itself for None."""
    return model if num_steps is None else model.respace(num_steps)


def require_real(sampler: AbstractSampler, model: DiffusionModel) -> None:
    """Refuse a model of discrete data."""
    if model.process.support.is_discrete:
        raise ValueError(
            f"sampler={type(sampler).__name__} is for real data, but the model has "
            f"{type(model.process).__name__}; Ancestral() is the sampler for discrete data."
        )
