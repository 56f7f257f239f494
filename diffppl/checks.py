"""Errors that come before long work, in the words of the caller."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .model import DiffusionModel

MOST_LEFT = 0.5  # standard deviations: two modes so far apart are told apart in 1 of 5 draws


def check_key(key: Any, name: str = "key") -> None:
    """Refuse anything that is not one typed JAX key.

    Raises:
        TypeError: an integer, an old-style `PRNGKey` array, or an array of keys.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        what = f"the {type(key).__name__} {key!r}" if isinstance(key, int) else "an old-style key"
        what = what if isinstance(key, int | jax.Array | np.ndarray) else type(key).__name__
        raise TypeError(f"{name} is {what}; it must be a typed key, such as jax.random.key(0).")
    if key.shape != ():
        raise TypeError(f"{name} has shape {key.shape}; it must be one key. Use key[0], or split.")


def check_data(name: str, x: Any, model: DiffusionModel) -> Array:
    """Data as an array of the model's dtype, shape `(n, *event_shape)`.

    Raises:
        TypeError: not numbers.
        ValueError: the wrong shape, no data, NaN or infinite values, or values outside the
            process's support.
    """
    values = np.asarray(x)
    process, event_shape = model.process, model.event_shape
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {values.dtype}; it must hold real numbers.")
    if values.shape[1:] != event_shape or values.ndim == 0:
        raise ValueError(
            f"{name} has shape {values.shape}, but the model's events have shape {event_shape}, "
            f"so it needs shape (n, {', '.join(map(str, event_shape))})."
        )
    if values.shape[0] == 0:
        raise ValueError(f"{name} is empty: it has shape {values.shape}.")
    if not np.all(np.isfinite(values)):
        count = int(np.sum(~np.isfinite(values)))
        raise ValueError(
            f"{name} has {count} NaN or infinite values; remove them, or leave missing entries "
            "unobserved in a program."
        )
    if not bool(jnp.all(process.support(jnp.asarray(values)))):
        raise ValueError(
            f"{name} has values from {values.min()} to {values.max()}, outside the support of "
            f"{type(process).__name__}: {process.support}."
        )
    return jnp.asarray(values, process.dtype)


def wanted_context(
    context: Any, model: DiffusionModel, name: str = "context"
) -> tuple[int, ...] | None:
    """The shape that a context must end in; None where there is none and need be none.

    Raises:
        ValueError: unasked for.
    """
    if context is None:
        return model.context_shape if model.needs_context else None
    if model.context_shape is None:
        raise ValueError(f"{name} was given, but the model has no context_shape.")
    return model.context_shape


def check_context(
    context: Any, model: DiffusionModel, n: int, name: str = "context"
) -> Array | None:
    """Contexts as an array, one for each of `n` data.

    Raises:
        ValueError: missing, unasked for, of the wrong shape or not finite.
    """
    wanted = wanted_context(context, model, name)
    if wanted is None:
        return None
    if context is None:
        raise ValueError(
            f"{name} is missing: the model has context_shape={wanted}, so it needs an array of "
            f"shape {(n, *wanted)}."
        )
    values = jnp.asarray(context, dtype=float)
    if values.shape != (n, *wanted):
        raise ValueError(
            f"{name} has shape {values.shape}; it needs one context for each datum, shape "
            f"{(n, *wanted)}."
        )
    if not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError(f"{name} has NaN or infinite values.")
    return values


def left_at_the_end(model: DiffusionModel, x_0: Array) -> Float[Array, ""]:
    """E|sqrt(alpha_bar_T) x_0|: what the last level keeps of data, in noise's standard deviations.

    The chain starts from noise that knows nothing of it, so that is how far every draw is led
    astray, and the weights of modes with it. 0 for discrete data.

    Args:
        model: the model.
        x_0: data or draws in model units, of shape `(*batch, *event_shape)`.
    """
    if model.process.support.is_discrete:
        return jnp.zeros(())
    lengths = jnp.linalg.norm(x_0.reshape(-1, math.prod(model.event_shape)), axis=1)
    return jnp.sqrt(model.process.schedule.alpha_bar()[-1]) * jnp.mean(lengths)


def warn_of_short_chain(left: Any, what: str) -> None:
    """Warn where a chain ends before noise has drowned the data; see `left_at_the_end`."""
    if float(left) > MOST_LEFT:
        warnings.warn(
            f"the chain of {what} ends too soon: E|sqrt(alpha_bar_T) x_0| = {float(left):.2f}, "
            f"where at most {MOST_LEFT} is good, so the weights of modes are wrong. Use a schedule "
            "with more noise at its end, such as schedules.LogSNRLinear with a larger "
            "noise_to_signal.",
            stacklevel=3,
        )
