"""Checks of arrays of numbers.

Inputs are NumPy arrays, lists, tables or JAX arrays. They are checked in their own precision, and
then converted to that of JAX; integers that would wrap round and floats that would overflow raise.
Tracers, whose values are unknown, are checked by shape and type alone.
"""

import numbers
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from .arguments import described

Values = np.ndarray | Array


@runtime_checkable
class SupportsArray(Protocol):
    """An object that NumPy converts to an array, such as a table of pandas."""

    def __array__(self) -> np.ndarray: ...


Numbers = ArrayLike | Sequence | SupportsArray
"""What `as_numbers` accepts: arrays, numbers, (nested) lists and tables."""


def describe_invalid(bad: ArrayLike, values: ArrayLike) -> str:
    """Describe invalid values for an error message: "2 of 90 values (-1 at [3], 7 at [8])"."""
    bad, values = np.asarray(bad), np.asarray(values)
    places = np.flatnonzero(bad)
    shown = [f"{values.flat[i]} at {_place(i, bad.shape)}" for i in places[:3]]
    more = ", .." if len(shown) < places.size else ""
    where = f" ({', '.join(shown)}{more})" if bad.ndim else f" ({values})"
    return f"{places.size:,} of {bad.size:,} values{where}"


def _place(index: int | np.integer, shape: tuple[int, ...]) -> list[int]:
    return [int(i) for i in np.unravel_index(index, shape)]


def as_numbers(name: str, x: Numbers) -> Values:
    """Return real numbers as a NumPy array in their own precision; tracers are returned unchanged.

    Accepts lists, tables and anything else that NumPy converts to an array of numbers.

    Raises:
        TypeError: not real numbers; or a masked array, whose mask would be lost.
        ValueError: rows of different lengths.
    """
    if isinstance(x, Tracer):
        values: Any = x
    else:
        if _is_masked(x):
            raise TypeError(
                f"{name} is a masked array with masked entries, which would count as "
                "observed: leave those rows out, or leave the entries unobserved in a program."
            )
        try:
            values = jnp.asarray(x) if _is_traced(x) else np.asarray(x)
        except TypeError as error:  # such as JAX keys
            raise TypeError(f"{name}={described(x)} must hold real numbers.") from error
        except ValueError as error:
            raise ValueError(
                f"{name} has rows of different lengths; they must have one length."
            ) from error
    if values.dtype == object:
        return _from_objects(name, x, values)
    if not any(jnp.issubdtype(values.dtype, k) for k in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{name} has dtype {values.dtype}; it must hold real numbers.")
    return values


def _is_masked(x: object) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_is_masked, x))
    return isinstance(x, np.ma.MaskedArray) and bool(np.ma.is_masked(x))


def _is_traced(x: object) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_is_traced, x))
    return isinstance(x, Tracer)


def _from_objects(name: str, x: Numbers, values: np.ndarray) -> np.ndarray:
    """Convert an object array of numbers, such as a table with columns of several types."""
    is_number = np.array(
        [isinstance(v, numbers.Real | np.bool_) for v in values.flat], dtype=bool
    ).reshape(values.shape)
    if values.ndim and is_number.all():
        return values.astype(np.float64)
    if not values.ndim:
        raise TypeError(f"{name}={described(x)} must be an array of real numbers.")
    columns = getattr(x, "columns", None)
    if columns is not None:
        bad = [str(c) for c, good in zip(columns, is_number.all(axis=0), strict=True) if not good]
        what = f"columns of it do not hold numbers: {', '.join(bad[:3])}"
    else:
        first = int(np.flatnonzero(~is_number)[0])
        what = (
            f"{np.sum(~is_number):,} of its {values.size:,} entries are not numbers (a "
            f"{type(values.flat[first]).__name__} at {_place(first, values.shape)})"
        )
    raise TypeError(
        f"{name} has dtype object; it must hold real numbers, but {what}. Encode categories as "
        "whole numbers, and leave out missing entries."
    )


def as_array(name: str, values: Values, dtype: DTypeLike | None = None) -> Array:
    """Return numbers as a JAX array, in JAX's precision of their own or of another dtype.

    Raises:
        ValueError: integers that would wrap round, or numbers that would become infinite.
    """
    wanted = jax.dtypes.canonicalize_dtype(values.dtype if dtype is None else dtype)
    check_range(name, values, wanted)
    return jnp.asarray(values, wanted)


def check_range(name: str, values: Values, dtype: np.dtype) -> None:
    """Raise a ValueError for numbers outside the range of a dtype of JAX."""
    # JAX arrays have been converted already, and every number has a truth value.
    if not isinstance(values, np.ndarray) or dtype in (values.dtype, jnp.bool_):
        return
    to_whole = jnp.issubdtype(dtype, jnp.integer)
    limits = jnp.iinfo(dtype) if to_whole else jnp.finfo(dtype)
    wide = values if to_whole else values.astype(np.float64)
    bad = (wide < limits.min) | (wide > limits.max)
    bad = bad if to_whole else bad & np.isfinite(wide)  # infinities stay infinite
    if np.any(bad):
        raise ValueError(
            f"{name} has {describe_invalid(bad, values)} beyond {dtype}, JAX's precision: rescale "
            "them, or call jax.config.update('jax_enable_x64', True)."
        )


MAX_ROUNDED = 0.1  # largest rounding error, in standard deviations of the column


def check_precision(name: str, values: np.ndarray) -> None:
    """Check that JAX's default precision resolves the variation of each column.

    Args:
        name: name of the argument.
        values: shape `(n, ...)`; each number of a row belongs to a column of its own.

    Raises:
        ValueError: the rounding error of a column is above a tenth of its standard deviation.
    """
    default = np.dtype(jnp.result_type(float))
    if values.size == 0 or values.dtype.kind not in "iuf" or values.dtype == default:
        return
    rows = np.asarray(values, np.float64).reshape(values.shape[0], -1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not rows.size:
        return
    error = np.abs(rows - rows.astype(default)).max(axis=0)
    spread = rows.std(axis=0)
    # A spread below 1e-12 of the values is rounding in float64: the column is constant.
    lost = np.flatnonzero((error > MAX_ROUNDED * spread) & (spread > 1e-12 * np.abs(rows[0])))
    if lost.size:
        j = lost[0]
        raise ValueError(
            f"{name} has a column, number {j}, that spreads over {spread[j]:.3g} around "
            f"{rows[0, j]:.6g}, where {default} resolves {np.spacing(default.type(rows[0, j])):.2g}"
            f"{f' (and {lost.size - 1} more)' if lost.size > 1 else ''}. Subtract a constant from "
            "it first, or call jax.config.update('jax_enable_x64', True)."
        )


def check_rows(name: str, values: Values) -> None:
    """Raise a ValueError for an array without rows."""
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"{name} is empty: it has shape {values.shape}.")


def check_finite(name: str, values: Values, remedy: str = "") -> None:
    """Raise a ValueError for numbers, not tracers, of which some are NaN or infinite."""
    bad = ~np.isfinite(values)
    if np.any(bad):
        raise ValueError(
            f"{name} has NaN or infinite values: {describe_invalid(bad, values)}.{remedy}"
        )


def as_finite(name: str, x: Numbers) -> Values:
    """Return `as_numbers` of finite numbers.

    Raises:
        TypeError: not real numbers.
        ValueError: NaN or infinite values.
    """
    values = as_numbers(name, x)
    if isinstance(values, np.ndarray) and not np.all(np.isfinite(values)):
        raise ValueError(
            f"{name} must be finite, but {describe_invalid(~np.isfinite(values), values)} are not."
        )
    return values


def as_double(name: str, x: Numbers) -> np.ndarray:
    """Return `as_finite` in double precision, on the host."""
    return np.asarray(as_finite(name, x), np.float64)
