"""How `fit` reads its data: an array, or a source of minibatches."""

import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ..checks import described
from ..data import AbstractSource, InMemory
from ..entry import check_context, check_data
from ..model import DiffusionModel

# Of a source, so many events (and at most so many numbers, if that leaves a hundred events) give
# the scaling and the warnings: its mean square is then known to about a percent.
MOST_EVENTS, MOST_NUMBERS = 10_000, 2**22


def as_source(data: Any, context: Any, model: DiffusionModel) -> AbstractSource:
    """`data` as a source for this model.

    Raises:
        TypeError, ValueError: an array that is not data of the model, or a source of other events
            or contexts than the model's.
    """
    if isinstance(data, AbstractSource) and context is not None:
        raise ValueError("context was given, but data is a source, which draws its own: leave it.")
    if isinstance(data, InMemory):
        data, context = data.data, data.context
    if isinstance(data, type):
        raise TypeError(f"data={described(data)} must be an array or a source of minibatches.")
    if not isinstance(data, AbstractSource):
        data = check_data("data", data, model)
        return InMemory(data, check_context(context, model, data.shape[0]))
    kind = type(data).__name__
    x_0, contexts = eqx.filter_eval_shape(data.batch, jax.random.key(0), 2)
    if x_0.shape != (2, *model.event_shape):
        raise ValueError(
            f"data is a source, {kind}, of events of shape {x_0.shape[1:]}, but the model's events "
            f"have shape {model.event_shape}."
        )
    shape = None if contexts is None else contexts.shape[1:]
    if shape != model.context_shape and (shape is not None or model.needs_context):
        raise ValueError(
            f"data is a source, {kind}, of contexts of shape {shape}, but the model has "
            f"context_shape={model.context_shape}."
        )
    return data


def typical(key: Array, source: AbstractSource, model: DiffusionModel) -> Array:
    """Data in the user's units that stand for all: an array whole, of other sources many draws.

    Raises:
        ValueError: the source draws NaN, values outside the process's support, or contexts that
            are NaN or no labels.
    """
    if isinstance(source, InMemory):
        return source.data
    numbers = math.prod(source.event_shape)
    size = min(MOST_EVENTS, max(100, MOST_NUMBERS // numbers))
    data, context = _draw(key, source, size)
    if context is not None:
        check_context(context, model, size, "the context that data draws")
    return check_data("data", data, model)


@eqx.filter_jit
def _draw(key: Array, source: AbstractSource, size: int) -> tuple[Array, Array | None]:
    return source.batch(key, size)
