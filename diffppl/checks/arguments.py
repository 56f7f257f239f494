"""Checks of single arguments.

A check takes the name and the value of an argument, and returns the value in the form that the
package uses: whole numbers as `int`, shapes as tuples of `int`, keys as typed keys. Checks run
before any long computation. Tracers, whose values are unknown, are checked by shape and type alone.

Wrong types raise a `TypeError` and wrong values a `ValueError`; sizes and shapes always raise a
`ValueError`. Messages name the argument as the user typed it and the remedy, and never print whole
arrays. Arrays of numbers are checked in `arrays`, data and contexts of a model in `model.inputs`.
"""

import dataclasses
import inspect
import math
import numbers
import operator
import os
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

_PACKAGE = __name__.partition(".")[0]
_MAX_LENGTH = 60  # characters of a value in an error message

T = TypeVar("T")
Time = int | Int[Array, ""]
"""A step t of a chain, in 1..T."""


# Values in error messages ------------------------------------------------------------------------


def described(value: object) -> str:
    """Format a value for an error message: its repr if short, else its type or shape."""
    if isinstance(value, type):
        return f"<class {value.__name__}>"
    is_array = isinstance(value, np.ndarray | jax.Array)
    if is_array and (value.ndim or isinstance(value, Tracer) or is_key(value)):
        return f"<array of shape {value.shape}>"
    is_plain = is_array or isinstance(value, str | numbers.Number | np.generic | list | tuple)
    text = repr(value) if is_plain or value is None else ""
    return text if 0 < len(text) <= _MAX_LENGTH else f"<{type(value).__name__}>"


def short_repr(module: eqx.Module) -> str:
    """Return a repr of a module without fields at their defaults; scalar arrays as numbers."""
    shown = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if isinstance(value, jax.Array) and value.ndim == 0 and not isinstance(value, Tracer):
            value = float(f"{float(value):.6g}")  # float32 would show as 0.10000000149
        is_default = value is field.default or (
            isinstance(value, float | int | eqx.Module) and value == field.default
        )
        if field.repr and not is_default:
            shown.append(f"{field.name}={getattr(value, '__name__', None) or repr(value)}")
    return f"{type(module).__name__}({', '.join(shown)})"


# Keys --------------------------------------------------------------------------------------------


def is_key(value: object) -> bool:
    """Return whether a value is a typed key, or an array of typed keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_key(key: object, name: str = "key") -> Array:
    """Return one typed key; an old-style key (`jax.random.PRNGKey`) is wrapped.

    Raises:
        TypeError: not a key (such as an integer), or an array of keys.
    """
    is_old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32  # PRNGKey
    if not is_old and not is_key(key):
        raise TypeError(f"{name}={described(key)} must be a typed key, such as jax.random.key(0).")
    try:
        typed: Any = jax.random.wrap_key_data(jnp.asarray(key)) if is_old else key
    except TypeError as error:  # not the length of a key
        raise TypeError(f"{name} is not a key: {error} Use jax.random.key(0).") from error
    if typed.shape != ():
        raise TypeError(
            f"{name} has shape {typed.shape}; it must be one key. Use {name}[0], or split."
        )
    return typed


# Numbers -----------------------------------------------------------------------------------------


def check_size(name: str, size: object, least: int | None = 1) -> int:
    """Return an integer of at least `least` as an `int`; any other value is a ValueError."""
    number = whole_number(size)
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f", {least} or more"
        raise ValueError(f"{name}={described(size)} must be a whole number{bound}.")
    return number


def whole_number(value: object) -> int | None:
    """Return a number of any integer type as an `int`; None for other values, also booleans."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # pyright: ignore
    except TypeError:
        return None


def size_field(name: str, least: int = 1, *, optional: bool = False) -> Callable[[object], Any]:
    """Return `check_size` as a field converter; None is allowed if `optional`."""
    return lambda size: None if optional and size is None else check_size(name, size, least)


def check_time(t: object, num_steps: int) -> int | Tracer:
    """Return one integer time in 1..T as an `int`; tracers are returned unchecked.

    Raises:
        ValueError: not an integer, or outside 1..T.
    """
    if isinstance(t, Tracer):
        return t
    number = check_size("t", t)
    if number > num_steps:
        raise ValueError(f"t={number} is beyond the last step of the chain, {num_steps}.")
    return number


def check_shape(name: str, shape: object, least: int = 1) -> tuple[int, ...]:
    """Return a tuple of integers of at least `least` each; any other value is a ValueError."""
    sizes = [whole_number(n) for n in shape] if isinstance(shape, tuple) else [None]
    whole = tuple(n for n in sizes if n is not None and n >= least)
    if len(whole) < len(sizes):
        kind = "positive integers" if least else "whole numbers"
        remedy = "such as (28, 28)" if whole_number(shape) is None else f"such as ({shape},)"
        raise ValueError(f"{name}={described(shape)} must be a tuple of {kind}, {remedy}.")
    return whole


def check_broadcast(name: str, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless an array of this shape broadcasts against the event."""
    try:
        good = np.broadcast_shapes(shape, event_shape) == event_shape
    except ValueError:
        good = False
    if not good:
        raise ValueError(
            f"{name} has shape {shape}, which does not broadcast against event_shape={event_shape}."
        )


def as_float(value: ArrayLike) -> Float[Array, "..."]:
    """Return a setting as an array of default precision, so that new values do not recompile."""
    return jnp.asarray(value, dtype=float)


def check_float(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    closed: bool | tuple[bool, bool] = False,
) -> Any:
    """Return one finite number between two bounds, included where `closed`; tracers pass.

    Raises:
        TypeError: not one number.
        ValueError: NaN, infinite, or out of range.
    """
    number = _number(name, value)
    if isinstance(number, Tracer):
        return number
    low_ok, high_ok = closed if isinstance(closed, tuple) else (closed, closed)
    above = low <= number if low_ok else low < number
    below = number <= high if high_ok else number < high
    if not (above and below and math.isfinite(number)):
        shown = described(value) if isinstance(value, numbers.Real) else repr(number)
        raise ValueError(
            f"{name}={shown} must {_interval(low, high, low_ok=low_ok, high_ok=high_ok)}."
        )
    return number


def _number(name: str, value: object) -> Any:
    """Return one real number as a `float`, or a scalar tracer as it is."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if isinstance(value, np.ndarray | jax.Array) and value.shape == ():
        is_number = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not is_number:
        raise TypeError(f"{name}={described(value)} must be one number.")
    return value if isinstance(value, Tracer) else float(np.asarray(value))


def _interval(low: float, high: float, *, low_ok: bool, high_ok: bool) -> str:
    if not math.isfinite(high):
        bound = f"{low:g} or more" if low_ok else f"more than {low:g}"
        return f"be {bound}" if math.isfinite(low) else "be one finite number"
    # Such as "lie between 0 and 1 (or be 0)" for [0, 1).
    included = [f"{end:g}" for end, ok in ((low, low_ok), (high, high_ok)) if ok]
    also = f" (or be {' or '.join(included)})" if included else ""
    return f"lie between {low:g} and {high:g}{also}"


def check_pair(name: str, value: object, *, closed: bool = False) -> tuple[Any, Any]:
    """Return two positive numbers, the smaller first; `closed` also allows 0 and infinity.

    Raises:
        TypeError: not two numbers.
        ValueError: out of range, or not in increasing order.
    """
    if not isinstance(value, tuple | list | np.ndarray) or len(value) != 2:
        raise TypeError(f"{name}={described(value)} must be two numbers, such as (0.01, 100.0).")
    low, high = (_number(f"{name}[{i}]", number) for i, number in enumerate(value))
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return low, high
    if not (0 <= low < high if closed else 0 < low < high < math.inf):
        zero = "0 <=" if closed else "0 <"
        raise ValueError(f"{name}={described(value)} must be two numbers, {zero} low < high.")
    return low, high


def check_flag(name: str, value: object) -> bool:
    """Return a boolean as a `bool`; any other value is a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={described(value)} must be True or False.")
    return bool(value)


# Objects -----------------------------------------------------------------------------------------


def check_instance(name: str, value: T, *kinds: type, remedy: str = "") -> T:
    """Return the value if it is an instance of one of several classes.

    Args:
        name, value: the argument.
        *kinds: the classes.
        remedy: end of the error message; by default it lists the package's classes of these kinds.

    Raises:
        TypeError: any other value; for a class, or for an object that holds one, with the remedy.
    """
    if isinstance(value, kinds):
        return value
    nouns = " or ".join(kind.__name__ for kind in kinds)
    what = f"{name}={described(value)} must be {'an' if nouns[0] in 'AEIOU' else 'a'} {nouns}"
    made: Any = value.__annotations__.get("return") if inspect.isfunction(value) else value
    remedy = remedy or _implementations(*kinds)
    if isinstance(made, type) and issubclass(made, kinds):
        call = f"write {getattr(value, '__name__', '')}(..)"
        remedy = f", and not its class: {call}" if made is value else f"{remedy}; {call}"
    elif isinstance(getattr(value, name, None), kinds):
        remedy = f": pass its .{name}"
    raise TypeError(f"{what}{remedy}.")


def _implementations(*kinds: type) -> str:
    """List the package's final classes of some kinds, for an error message."""
    found, todo = set(), [*kinds]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if getattr(cls, "__final__", False) and cls.__module__.partition(".")[0] == _PACKAGE:
            found.add(cls.__name__)
    found -= {kind.__name__ for kind in kinds}
    return f", such as {', '.join(sorted(found))}" if found else ""


def check_fields(module: eqx.Module) -> None:
    """Apply `check_instance` to the fields annotated as modules; for use in `__check_init__`."""
    for field in dataclasses.fields(module):
        kinds = typing.get_args(field.type) or (field.type,)
        kinds = tuple(k for k in kinds if isinstance(k, type) and issubclass(k, eqx.Module))
        value = getattr(module, field.name)
        if kinds and not (value is None and field.default is None):  # an optional field
            check_instance(field.name, value, *kinds)


def check_callable(name: str, function: object, arguments: str = "(x_t, t, context)") -> Any:
    """Return a callable, by default a network.

    Raises:
        TypeError: not callable, or the class of a module.
    """
    if not callable(function) or (isinstance(function, type) and issubclass(function, eqx.Module)):
        raise TypeError(f"{name}={described(function)} must be callable as {arguments}.")
    return function


def check_path(name: str, path: object) -> str | os.PathLike:
    """Return the path of a file or a folder; any other value is a TypeError."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}={described(path)} must be a path: a string or a pathlib.Path.")
    return path
