"""Replacement of LAPACK calls for small matrices by `diffppl.linalg`, which explains the reason.

Programs contain LAPACK calls of the user and of NumPyro, as for a `MultivariateNormal`. They are
replaced in the jaxpr of the program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn  # pyright: ignore
from jaxtyping import Array

from .. import linalg

MAX_ROWS = 128
"""Largest number of rows of a matrix that is factorised inside XLA."""


def inside_xla(jaxpr: Jaxpr) -> Jaxpr:
    """Return an equivalent jaxpr without LAPACK calls for small matrices."""
    return jaxpr.replace(eqns=[_rewrite(equation) for equation in jaxpr.eqns])


def _rewrite(equation: JaxprEqn) -> JaxprEqn:
    rule = _RULES.get(equation.primitive.name)
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    if rule is None or not _is_small(inputs[0]):
        params = {name: _rewrite_parameter(value) for name, value in equation.params.items()}
        return equation.replace(params=params)
    examples = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in inputs]
    traced = jax.make_jaxpr(jax.jit(functools.partial(rule, **equation.params)))(*examples)
    (call,) = traced.jaxpr.eqns  # jit makes the rule a single equation
    return call.replace(invars=equation.invars, outvars=equation.outvars)


def _is_small(aval: ShapedArray) -> bool:
    return aval.shape[-1] <= MAX_ROWS and jnp.issubdtype(aval.dtype, jnp.floating)


def _rewrite_parameter(value: object) -> object:
    """Rewrite the bodies of loops, branches and calls, which are parameters of their equations."""
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=inside_xla(value.jaxpr))
    if isinstance(value, Jaxpr):
        return inside_xla(value)
    if type(value) is tuple:  # not a named tuple, such as the dimension numbers of a gather
        return tuple(map(_rewrite_parameter, value))
    return value


def _mapped(function: Callable[..., Array], num_axes: int) -> Callable[..., Array]:
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function


def _cholesky(matrix: Array, **params: object) -> Array:
    del params
    # LAPACK uses the lower triangle, `linalg.cholesky` the upper one.
    return _mapped(linalg.cholesky, matrix.ndim - 2)(matrix.mT)


def _triangular_solve(
    a: Array,
    b: Array,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    unit_diagonal: bool,
    **params: object,
) -> Array:
    del params
    if not left_side:  # X A = B is A' X' = B'
        solved = _triangular_solve(
            a,
            b.mT,
            left_side=True,
            lower=lower,
            transpose_a=not transpose_a,
            unit_diagonal=unit_diagonal,
        )
        return solved.mT
    factor, transpose = (a, transpose_a) if lower else (a.mT, not transpose_a)
    if unit_diagonal:
        identity = jnp.eye(a.shape[-1], dtype=a.dtype)
        factor = jnp.tril(factor, -1) + identity
    solve = functools.partial(linalg.solve_triangular, transpose=transpose)
    return _mapped(solve, a.ndim - 2)(factor, b)


_RULES: dict[str, Callable[..., Array]] = {
    "cholesky": _cholesky,
    "triangular_solve": _triangular_solve,
}
