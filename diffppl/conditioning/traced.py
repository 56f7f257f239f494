"""Functions stored as jaxprs, with equality by computation instead of identity.

`jax.jit` caches compilations by the identity of a Python function and embeds closed-over values as
constants, so a change of a global has no effect on later calls. `Traced` stores the jaxpr of a
function instead. Closed-over arrays become inputs, and traces of the same computation are equal, so
a compiled function with a `Traced` argument is compiled again only if the computation differs.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun  # pyright: ignore
from jaxtyping import Array, ArrayLike, PyTree
from numpyro.ops.provenance import track_deps_jaxpr

from .inside_xla import inside_xla

Skeleton = tuple[PyTree, Hashable]
"""The static part of a tree, and the structure of its arrays."""


@final
class Traced(eqx.Module):
    """A function from arrays to arrays, represented by its jaxpr.

    Args:
        function: a function from pytrees of arrays to a pytree of arrays.
        *examples: example arguments; only shapes and dtypes are used.
    """

    _constants: list[Array]
    _code: "_Code" = eqx.field(static=True)

    def __init__(self, function: Callable[..., PyTree], *examples: PyTree) -> None:
        closed, out = jax.make_jaxpr(function, return_shape=True)(*examples)
        closed = closed.replace(jaxpr=inside_xla(closed.jaxpr))
        # Leaves of the module, so that new values of closed-over arrays need no compilation.
        self._constants = [jnp.asarray(constant) for constant in closed.consts]
        self._code = _Code(closed, jax.tree.structure(examples), jax.tree.structure(out))

    def __call__(self, *args: PyTree) -> PyTree:
        """Evaluate the function; may be called inside JAX transformations."""
        leaves, structure = jax.tree.flatten(args)
        if structure != self._code.inputs:
            raise TypeError(f"arguments have structure {structure}, not {self._code.inputs}.")
        return jax.tree.unflatten(self._code.outputs, self._code.run(self._constants, leaves))

    def provenance(self, *sources: PyTree[frozenset[str]]) -> PyTree[frozenset[str]]:
        """Return the set of sources on which each output depends.

        Args:
            *sources: a set of names, possibly empty, for each leaf of the arguments.
        """
        dependences = track_deps_jaxpr(self._code.jaxpr, jax.tree.leaves(sources))
        return jax.tree.unflatten(self._code.outputs, dependences)


@final
class _Code:
    """A jaxpr without its constants; equal to any other jaxpr of the same computation."""

    def __init__(self, closed: ClosedJaxpr, inputs: Hashable, outputs: Hashable) -> None:
        self.jaxpr, self.inputs, self.outputs = closed.jaxpr, inputs, outputs
        self._identity = (str(closed.jaxpr), tuple(_hidden(closed.jaxpr)), inputs, outputs)
        self._hash = hash(self._identity)

        @jax.jit  # compiled once in an enclosing function, for all of its calls
        def program(constants: list[Array], leaves: list[Array]) -> list[Array]:
            return [*map(jnp.asarray, jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(*leaves))]

        self.run = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self._identity == other._identity

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<jaxpr of {len(self.jaxpr.eqns)} equations>"


def _hidden(jaxpr: Jaxpr) -> Iterator[Hashable]:
    """Yield what the text of a jaxpr omits: digits of literals, constants of inner jaxprs."""
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


def _content(value: ArrayLike) -> Hashable:
    """Return a hashable representation of an array; of a tracer, its identity."""
    if isinstance(value, Tracer):
        return id(value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def flattened(tree: PyTree) -> tuple[list[Array], Skeleton]:
    """Return the arrays of a tree, and its skeleton for `restored`."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    return leaves, (static, structure)


def restored(leaves: list[Array], skeleton: Skeleton) -> PyTree:
    """Return a tree from its arrays and its skeleton."""
    static, structure = skeleton
    return eqx.combine(jax.tree.unflatten(structure, leaves), static)
