"""Single arguments: their checks, in the words of the caller. Everything may import this."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape, or an error that names it."""
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"{name}={shape!r} must be a tuple of positive integers, such as (28, 28)."
        )
    return shape


def check_size(name: str, size: Any, least: int = 1) -> int:
    """A whole number of at least `least`, or an error that names it."""
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ValueError(f"{name}={size!r} must be a whole number, {least} or more.")
    return size


def check_callable(name: str, network: Any) -> Any:
    """Something that can be called, or an error that names it."""
    if not callable(network):
        raise TypeError(f"{name}={network!r} must be callable as (x_t, t, context).")
    return network


def as_float(value: ArrayLike) -> Float[Array, "..."]:
    """A setting as an array of the default precision: a new value of it compiles nothing anew."""
    return jnp.asarray(value, dtype=float)


def check_float(name: str, value: Array, low: float, high: float, *, closed: bool = False) -> None:
    """A number between two others, or one of them if `closed`. Passes in a trace."""
    if isinstance(value, Tracer):
        return
    if not (low <= value <= high if closed else low < value < high):
        lie = (
            f"lie between {low:g} and {high:g}" if math.isfinite(high) else f"be more than {low:g}"
        )
        raise ValueError(f"{name}={value} must {lie}.")


def short_repr(module: Any) -> str:
    """The class of a module and what is not as by default; single numbers as numbers."""
    shown = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if isinstance(value, jax.Array) and value.ndim == 0 and not isinstance(value, Tracer):
            value = float(f"{float(value):.6g}")
        is_default = value is field.default or (
            isinstance(value, float | int) and value == field.default
        )
        if not is_default:
            shown.append(f"{field.name}={value!r}")
    return f"{type(module).__name__}({', '.join(shown)})"
