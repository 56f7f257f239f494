"""The data of `fit`: an array, or a source of minibatches.

An array stays on the host until the model's scaling is known, and is converted to the model's units
there, once and in double precision. A source draws minibatches in the user's units and in JAX's
precision.
"""

import math
from typing import final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from ..checks.arguments import described
from ..checks.arrays import Numbers, check_precision
from ..data import AbstractSource, InMemory
from ..model import DiffusionModel
from ..model.inputs import check_context, check_data
from ..model.scaling import Scaling

# Size of the draw of a source that determines the scaling and the warnings: events, and numbers
# (but at least a hundred events). The mean square then has an error of about a percent.
MAX_EVENTS, MAX_NUMBERS = 10_000, 2**22


@final
class Rows(eqx.Module):
    """An array of data in the user's units, with its contexts."""

    data: np.ndarray | Array
    context: Array | None


def as_dataset(
    data: Numbers | AbstractSource, context: Numbers | None, model: DiffusionModel
) -> Rows | AbstractSource:
    """Check `data` and `context` against a model, and return them as `Rows` or as a source.

    Raises:
        TypeError, ValueError: an array that is not data of the model, or a source whose events or
            contexts differ in shape from the model's.
    """
    if isinstance(data, AbstractSource) and context is not None:
        raise ValueError("context was given, but data is a source, which draws its own: omit it.")
    if isinstance(data, InMemory):  # checked and scaled as an array
        data, context = data.data, data.context
    if isinstance(data, type):
        raise TypeError(f"data={described(data)} must be an array or a source of minibatches.")
    if not isinstance(data, AbstractSource):
        rows = check_data("data", data, model)
        contexts = check_context(context, model, rows.shape[0])
        if context is not None and not isinstance(context, jax.Array):
            check_precision("context", np.asarray(context))
        return Rows(rows, contexts)
    kind = type(data).__name__
    # Shapes only; the values are checked on the draw of `representative`.
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


def representative(
    key: Array, dataset: Rows | AbstractSource, model: DiffusionModel
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return representative data and contexts: those of an array, or draws of a source.

    Raises:
        ValueError: the source draws NaN, values outside the process's support, or contexts that
            are NaN or invalid labels.
    """
    if isinstance(dataset, AbstractSource):
        numbers = math.prod(dataset.event_shape)
        size = min(MAX_EVENTS, max(100, MAX_NUMBERS // numbers))
        data, context = _draw(key, dataset, size)
        data = check_data("data", data, model)
        if context is not None:
            check_context(context, model, size, "the context that data draws")
    else:
        data, context = dataset.data, dataset.context
    return np.asarray(data), None if context is None else np.asarray(context)


@eqx.filter_jit
def _draw(key: Array, source: AbstractSource, size: int) -> tuple[Array, Array | None]:
    return source.batch(key, size)


def minibatches(
    dataset: Rows | AbstractSource, model: DiffusionModel
) -> tuple[AbstractSource, Scaling | None]:
    """Return a source of minibatches, and the scaling of a fit still to be applied to them."""
    if isinstance(dataset, AbstractSource):
        return dataset, model.scaling
    # Scaled once, on the host.
    return InMemory(model.to_model(dataset.data), dataset.context), None


def column_names(data: object) -> list[str] | None:
    """Return the column names of a table, such as a pandas DataFrame, or None."""
    names = getattr(data, "columns", None)
    return None if names is None else [str(name) for name in names]
