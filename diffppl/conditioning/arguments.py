"""Arguments of a program: which of them are inputs of its jaxpr, and which are constants of it.

Arrays and floats are inputs, so that new values of them compile nothing. Everything else (strings,
integers, lists, data frames, objects) is passed to the program as it is.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any, TypeVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

T = TypeVar("T")

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""Raised where a program reads in Python the value of something that is traced."""


@final
class Arguments:
    """Positional arguments, keyword arguments, and data to condition a program on.

    Args:
        args, kwargs: of the program.
        data: values of sites, by name; arrays.

    Raises:
        TypeError: a masked array, whose mask JAX would drop.
        ValueError: integers that JAX would wrap around.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], data: dict[str, Any]) -> None:
        for name, value in [*enumerate(args), *kwargs.items()]:
            for leaf in jax.tree.leaves(value):
                _check(name, leaf)
        inputs, self._constants = eqx.partition((args, kwargs), _is_input, is_leaf=_is_list)
        self._is_concrete = False
        self.inputs: PyTree = (jax.tree.map(_as_array, inputs), data)

    def concrete(self) -> "Arguments":
        """The same, where only the data are inputs, for programs that read values in Python."""
        arguments = copy.copy(self)
        (args, kwargs), data = self.restored(self.inputs)
        arguments._constants, arguments._is_concrete = (args, kwargs), True
        nothing = jax.tree.map(lambda _: None, (args, kwargs), is_leaf=_is_list)
        arguments.inputs = (nothing, data)
        return arguments

    def restored(self, inputs: PyTree) -> tuple[tuple[Any, dict[str, Any]], dict[str, Any]]:
        """The arguments and the data, with these inputs in place."""
        arguments, data = inputs
        return eqx.combine(arguments, self._constants, is_leaf=_is_list), data

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """A context in which operations on constants yield values, if the program needs them."""
        return jax.ensure_compile_time_eval() if self._is_concrete else contextlib.nullcontext()


def traced(make: Callable[[Arguments], T], arguments: Arguments) -> T:
    """`make(arguments)`, where arguments are traced if the program allows it.

    Raises:
        TypeError: the program reads the value of a latent site in Python.
    """
    try:
        return make(arguments)
    except NEEDS_VALUES:
        pass  # perhaps of an argument: let the program have the values
    try:
        return make(arguments.concrete())
    except NEEDS_VALUES as error:
        raise TypeError(
            "program reads the value of a latent site in Python (by if, int(), numpy, or a mask as "
            "an index); use jax.numpy.where or jax.lax.cond in its place."
        ) from error


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


def _as_array(value: Any) -> jax.Array:
    array = jnp.asarray(value)
    return jnp.asarray(array, array.dtype)  # 0.3 compiles nothing anew after np.float32(0.3)


def _is_input(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, jax.Array | float)


def _check(name: int | str, leaf: Any) -> None:
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
