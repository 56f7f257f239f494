"""Arguments of a program, split into inputs and constants of its jaxpr.

Arrays and floats are inputs, so that new values do not recompile. Everything else (strings,
integers, lists, data frames, objects) is passed to the program unchanged.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

T = TypeVar("T")

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""Errors that JAX raises where Python code requires the value of a tracer."""


@final
class Arguments:
    """Positional and keyword arguments of a program, and data to condition it on.

    Args:
        args, kwargs: arguments of the program.
        data: observed values by site name; arrays.

    Raises:
        TypeError: an argument is a masked array, whose mask JAX would drop.
        ValueError: an argument has integers that overflow the integer dtype of JAX.
    """

    def __init__(
        self, args: tuple[object, ...], kwargs: dict[str, object], data: dict[str, Array]
    ) -> None:
        for name, value in [*enumerate(args), *kwargs.items()]:
            for leaf in jax.tree.leaves(value):
                _check(name, leaf)
        inputs, self._constants = eqx.partition((args, kwargs), _is_input, is_leaf=_is_list)
        self._is_concrete = False
        self.inputs: PyTree = (jax.tree.map(_as_array, inputs), data)

    def concrete(self) -> "Arguments":
        """Return a copy whose only inputs are the data, for programs that use values in Python."""
        arguments = copy.copy(self)
        (args, kwargs), data = self.restored(self.inputs)
        arguments._constants, arguments._is_concrete = (args, kwargs), True
        empty = jax.tree.map(lambda _: None, (args, kwargs), is_leaf=_is_list)
        arguments.inputs = (empty, data)
        return arguments

    def restored(
        self, inputs: PyTree
    ) -> tuple[tuple[tuple, dict[str, object]], dict[str, ArrayLike]]:
        """Return the arguments and the data, combined from the constants and these inputs."""
        arguments, data = inputs
        return eqx.combine(arguments, self._constants, is_leaf=_is_list), data

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that evaluates operations on constants at trace time, if required."""
        return jax.ensure_compile_time_eval() if self._is_concrete else contextlib.nullcontext()


def traced(make: Callable[[Arguments], T], arguments: Arguments) -> T:
    """Return `make(arguments)`, with traced arguments if the program supports them.

    Raises:
        TypeError: the program uses the value of a latent site in Python.
    """
    try:
        return make(arguments)
    except NEEDS_VALUES:
        pass  # the value may be that of an argument: retry with concrete arguments
    try:
        return make(arguments.concrete())
    except NEEDS_VALUES as error:
        raise TypeError(
            "program reads the value of a latent site in Python (by if, int(), numpy, or a mask as "
            "an index); use jax.numpy.where or jax.lax.cond in its place."
        ) from error


def _is_list(node: object) -> bool:
    # A list is a single constant, even a list of arrays or floats.
    return isinstance(node, list)


def _as_array(value: ArrayLike) -> jax.Array:
    array = jnp.asarray(value)
    return jnp.asarray(array, array.dtype)  # strong type: 0.3 and np.float32(0.3) compile once


def _is_input(leaf: object) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, jax.Array | float)


def _check(name: int | str, leaf: object) -> None:
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"argument {name!r} of the program is a masked array, whose mask would be dropped; "
            "pass its data and its mask, and observe under numpyro.handlers.mask(mask=...)."
        )
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "iu" and leaf.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if leaf.min() < limits.min or leaf.max() > limits.max:
            raise ValueError(
                f"argument {name!r} of the program has integers from {leaf.min()} to {leaf.max()}, "
                f"which {limits.dtype} cannot hold; pass them as floating-point numbers."
            )
