"""Checks of the data and contexts of a model, and of the noise at the end of its chain."""

import math
import warnings

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ..checks.arrays import (
    Numbers,
    Values,
    as_array,
    as_numbers,
    check_finite,
    check_range,
    check_rows,
    describe_invalid,
)
from ..processes.support import check_support
from .base import AbstractModel
from .compatibility import check_takes_context

# In standard deviations of the noise. Two modes at this distance are distinguished in 1 of 5 draws.
MAX_RESIDUAL_SIGNAL = 0.5


def check_ends_in(
    name: str, shape: tuple[int, ...], ending_name: str, ending: tuple[int, ...]
) -> None:
    """Raise a ValueError unless `shape` ends in `ending`, the shape of an event or a context."""
    # A negative start of the slice would count from the end.
    if shape[max(len(shape) - len(ending), 0) :] != ending:
        raise ValueError(
            f"{name} has shape {shape}, which does not end in the model's {ending_name}={ending}."
        )


def check_data(name: str, x: Numbers, model: AbstractModel) -> Values:
    """Return data of shape `(n, *event_shape)` in the user's units.

    Real data stay on the host in their own precision, in which `DiffusionModel.to_model` centres
    them; discrete data are converted to the dtype of the process.

    Raises:
        TypeError: not numbers.
        ValueError: wrong shape, no data, NaN or infinite values, or values outside the support of
            the process.
    """
    values, event_shape = as_numbers(name, x), model.event_shape
    if values.shape[1:] != event_shape or values.ndim == 0:
        raise ValueError(
            f"{name} has shape {values.shape}, but the model's events have shape {event_shape}, "
            f"so it needs shape (n, {', '.join(map(str, event_shape))})."
        )
    check_rows(name, values)
    return as_events(name, values, model)


def as_events(name: str, x: Numbers, model: AbstractModel) -> Values:
    """Return data as `check_data` does, of shape `(*batch, *event_shape)`."""
    values, process = as_numbers(name, x), model.process
    check_ends_in(name, values.shape, "event_shape", model.event_shape)
    if isinstance(values, Tracer):
        return values.astype(process.dtype)
    remedy = " Remove them, or leave missing entries unobserved in a program."
    check_finite(name, values, remedy)
    if not process.support.is_discrete:
        # Not converted: float32 would round data that are far from 0 before they are centred.
        check_range(name, values, process.dtype)
        return values
    check_support(name, np.asarray(values), process)
    return as_array(name, values, process.dtype)


def as_context(name: str, context: Numbers | None, model: AbstractModel) -> Array | None:
    """Return contexts as an array of shape `(*batch, *context_shape)`, or None if not required.

    Raises:
        TypeError: not numbers.
        ValueError: missing, not supported by the model, of the wrong shape, not finite; or labels
            that are not whole numbers from 0 to `num_classes` - 1 (or -1, for no class).
    """
    if context is None:
        if model.context_shape is not None and model.needs_context:
            shape = ", ".join(map(str, ("n", *model.context_shape)))
            raise ValueError(
                f"{name} is missing: the model has context_shape={model.context_shape}, so pass an "
                f"array of shape ({shape}{',' * (not model.context_shape)})."
            )
        return None
    wanted = check_takes_context(name, model.context_shape)
    values = as_numbers(name, context)
    check_ends_in(name, values.shape, "context_shape", wanted)
    if isinstance(values, Tracer):
        return values.astype(jnp.result_type(float))
    check_finite(name, values)
    if (num_labels := model.num_labels) is not None:
        labels = np.asarray(values, np.float64)
        bad = (labels < -1) | (labels >= num_labels) | (labels != np.round(labels))
        if bad.any():
            raise ValueError(
                f"{name} has {describe_invalid(bad, values)} that are not labels: they must be "
                f"whole numbers from 0 to {num_labels - 1}, or -1 for no class."
            )
    return as_array(name, values, float)


def check_context(
    context: Numbers | None, model: AbstractModel, n: int, name: str = "context"
) -> Array | None:
    """Return contexts as an array, with one for each of `n` data.

    Raises:
        TypeError, ValueError: as for `as_context`, or the number of contexts is not `n`.
    """
    values = as_context(name, context, model)
    if values is not None and values.shape != (n, *(model.context_shape or ())):
        raise ValueError(
            f"{name} has shape {values.shape}; it needs one context for each datum, shape "
            f"{(n, *(model.context_shape or ()))}."
        )
    return values


def as_batch(
    model: AbstractModel,
    x_0: Numbers,
    context: Numbers | None,
    names: tuple[str, str] = ("x_0", "context"),
) -> tuple[Array, Array | None]:
    """Return data in the chain's units, shape `(n, *event_shape)`, and a context for each.

    Raises:
        TypeError, ValueError: as for `check_data` and `check_context`.
    """
    values = check_data(names[0], x_0, model)
    context = check_context(context, model, values.shape[0], names[1])
    return model.to_model(values), context


# The end of the chain ---------------------------------------------------------------------------


def residual_signal(model: AbstractModel, x_0: Array) -> Float[Array, ""]:
    """Return E|sqrt(alpha_bar_T) x_0|: the signal at t = T, in standard deviations of the noise.

    The reverse chain starts from noise without this signal, so it is the error of the initial
    state, which biases the weights of modes. 0 for discrete data.

    Args:
        model: the model.
        x_0: data or draws in model units, of shape `(*batch, *event_shape)`.
    """
    if model.process.support.is_discrete:
        return jnp.zeros(())
    lengths = jnp.linalg.norm(x_0.reshape(-1, math.prod(model.event_shape)), axis=1)
    return jnp.sqrt(model.process.schedule.alpha_bar()[-1]) * jnp.mean(lengths)


def warn_of_residual_signal(left: ArrayLike, what: str) -> None:
    """Warn if the signal at t = T is large against the noise; see `residual_signal`."""
    signal = float(np.asarray(left))
    if signal > MAX_RESIDUAL_SIGNAL:
        warnings.warn(
            f"the chain of {what} ends with too little noise: E|sqrt(alpha_bar_T) x_0| = "
            f"{signal:.2f}, but should be at most {MAX_RESIDUAL_SIGNAL}. The weights of modes "
            "are wrong. Use a schedule with more noise at its end, such as "
            "schedules.log_snr_linear with a larger noise_to_signal.",
            stacklevel=3,  # the caller of the public function
        )
