"""Functions that are traced once, and compiled by what they compute.

JAX compiles a Python function once for each identity of it, and bakes in whatever the function
closes over: a changed global then goes unnoticed. `Traced` holds the jaxpr of a function in place
of the function. The arrays that it closes over become inputs, and two traces that compute the same
are equal, so that a compiled function that takes a `Traced` as its argument is compiled again
exactly where the computation differs.
"""

from collections.abc import Callable, Iterator
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun  # pyright: ignore
from jaxtyping import Array, PyTree
from numpyro.ops.provenance import track_deps_jaxpr

from .inside_xla import inside_xla


@final
class Traced(eqx.Module):
    """A function from arrays to arrays as its jaxpr.

    Args:
        function: takes and returns pytrees of arrays.
        *examples: arguments, of which only shapes and dtypes matter.
    """

    _constants: list[Array]
    _code: "_Code" = eqx.field(static=True)

    def __init__(self, function: Callable[..., PyTree], *examples: PyTree) -> None:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*examples)
        closed = closed.replace(jaxpr=inside_xla(closed.jaxpr))
        self._constants = [jnp.asarray(constant) for constant in closed.consts]
        self._code = _Code(closed, jax.tree.structure(examples), jax.tree.structure(out))

    def __call__(self, *args: PyTree) -> PyTree:
        """Evaluate the function, inside or outside of other transformations."""
        leaves, structure = jax.tree.flatten(args)
        if structure != self._code.inputs:
            raise TypeError(f"arguments have structure {structure}, not {self._code.inputs}.")
        return jax.tree.unflatten(self._code.outputs, self._code.run(self._constants, leaves))

    def provenance(self, *sources: PyTree[frozenset[str]]) -> PyTree[frozenset[str]]:
        """Which sources each output depends on.

        Args:
            *sources: for each leaf of the arguments a set of names, perhaps empty.
        """
        found = track_deps_jaxpr(self._code.jaxpr, jax.tree.leaves(sources))
        return jax.tree.unflatten(self._code.outputs, found)


@final
class _Code:
    """A jaxpr without its constants, equal to any other that computes the same."""

    def __init__(self, closed: ClosedJaxpr, inputs: Any, outputs: Any) -> None:
        self.jaxpr, self.inputs, self.outputs = closed.jaxpr, inputs, outputs
        self._identity = (str(closed.jaxpr), tuple(_hidden(closed.jaxpr)), inputs, outputs)
        self._hash = hash(self._identity)

        @jax.jit  # one copy in whatever it is part of, however often it is evaluated there
        def program(constants: list[Array], leaves: list[Array]) -> list[Array]:
            return [*map(jnp.asarray, jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(*leaves))]

        self.run = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self._identity == other._identity

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<jaxpr of {len(self.jaxpr.eqns)} equations>"


def _hidden(jaxpr: Jaxpr) -> Iterator[Any]:
    """What the text of a jaxpr leaves out: digits of literals, constants of inner jaxprs."""
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if isinstance(variable, Literal):
                yield _content(variable.val)
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(part, ClosedJaxpr):
                yield from (_content(constant) for constant in part.consts)
                yield from _hidden(part.jaxpr)
            elif isinstance(part, Jaxpr):
                yield from _hidden(part)


def _content(value: Any) -> Any:
    if isinstance(value, Tracer):
        return id(value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def flattened(tree: Any) -> tuple[list[Array], Any]:
    """The arrays of a tree, and what `restored` makes it from again."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    return leaves, (static, structure)


def restored(leaves: list[Array], skeleton: Any) -> Any:
    """A tree from its arrays and its skeleton."""
    static, structure = skeleton
    return eqx.combine(jax.tree.unflatten(structure, leaves), static)
