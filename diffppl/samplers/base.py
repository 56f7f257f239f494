"""The interface of samplers, and the loop shared by chain samplers."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..checks.arguments import check_fields
from ..model import DiffusionModel


class SamplerState(NamedTuple):
    """State of a chain: x_t, and what the sampler stores of previous steps."""

    x: Array
    memory: Any


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
        dtype = model.process.dtype
        key_steps, key_last = jax.random.split(key)

        def step(state: SamplerState, inputs: tuple[Array, Array]) -> tuple[SamplerState, Any]:
            key, t = inputs
            state = self.step(key, model, state, t, context)
            # A step may promote the dtype, which `scan` does not allow.
            state = state._replace(x=state.x.astype(dtype))
            return state, state.x if keep_path else None

        x_T = x_T.astype(dtype)
        times = jnp.arange(model.num_steps, 1, -1)
        keys = jax.random.split(key_steps, len(times))
        state, xs = jax.lax.scan(step, self.init(x_T), (keys, times))
        x_0 = self.last(key_last, model, state, context).astype(dtype)
        return x_0, jnp.concatenate([x_T[None], xs, x_0[None]]) if keep_path else None


def respaced(model: DiffusionModel, num_steps: int | None) -> DiffusionModel:
    """Return the model at `num_steps` of its levels, or unchanged for None."""
    return model if num_steps is None else model.respace(num_steps)


def require_real(sampler: AbstractSampler, model: DiffusionModel) -> None:
    """Raise ValueError for a model of discrete data."""
    if model.process.support.is_discrete:
        raise ValueError(
            f"sampler={type(sampler).__name__} is for real data, but the model has "
            f"{type(model.process).__name__}; Ancestral() is the sampler for discrete data."
        )
