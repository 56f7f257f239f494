"""Cholesky factors, triangular solves, and the largest eigenvalue.

References:
    Golub and Van Loan 2013, "Matrix Computations", 4.2.
    Murray 2016, "Differentiation of the Cholesky decomposition".
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Sizes at which one algorithm becomes faster than another, as measured on CPUs.
_BLOCK = 4  # rows that are subtracted at a time
_WHOLE = 16  # rows up to which a matrix is factorised in one loop
SMALL = 8  # rows up to which loops and products are unrolled, and eigenvectors are cheap

_barrier = lax.optimization_barrier  # else XLA recomputes a row, with other rounding, at each use


@jax.custom_jvp
def cholesky(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return the lower triangular L with L L' = matrix; all NaN if it is not positive definite.

    The upper triangle of `matrix` is used, and derivatives are along symmetric changes.
    """
    upper = _upper_factor(matrix)
    return jnp.where(jnp.all(jnp.diagonal(upper) > 0), upper.T, jnp.nan)


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    factor = cholesky(*primals)  # Murray 2016: dL = L Phi(L^-1 dA L^-T), with half the diagonal
    white = solve_triangular(factor, solve_triangular(factor, symmetric_part(*tangents)).T)
    return factor, product(factor, jnp.tril(white) - jnp.diag(jnp.diagonal(white) / 2))


def _upper_factor(matrix: Array) -> Array:
    """Return L': each row is that of the matrix, minus multiples of the rows above, and scaled."""
    m = len(matrix)
    num = m if m <= _WHOLE else -(-m // 2)

    def scaled(found: Array, j: Array | int) -> Array:
        return jnp.where(jnp.arange(m) >= j, found / jnp.sqrt(found[j]), 0.0)

    if m <= SMALL:
        matrix, rows = _barrier(matrix), []
        for j in range(m):
            rows.append(_barrier(scaled(matrix[j] - sum(above[j] * above for above in rows), j)))
        return jnp.asarray(rows).reshape(m, m)

    def row(j: Array, upper: Array) -> Array:
        return upper.at[j].set(scaled(_subtracted(matrix[j], upper[:, j], upper, j), j))

    start = jnp.zeros((num + -num % _BLOCK, m), matrix.dtype)
    upper = lax.fori_loop(0, num, row, start)[:num]
    if num < m:
        right = upper[:, num:]  # these were the first rows; then those of the Schur complement
        rest = _upper_factor(matrix[num:, num:] - product(right.T, right))
        upper = jnp.concatenate([upper, jnp.pad(rest, ((0, 0), (num, 0)))])
    return upper


def _subtracted(row: Array, coefficients: Array, rows: Array, num: Array) -> Array:
    """Return row - coefficients @ rows, where rows from `num` on are zero."""

    def block(number: Array, row: Array) -> Array:
        c = lax.dynamic_slice_in_dim(coefficients, number * _BLOCK, _BLOCK)
        r = lax.dynamic_slice_in_dim(rows, number * _BLOCK, _BLOCK)
        return row - sum(c[k] * r[k] for k in range(_BLOCK))

    return lax.fori_loop(0, (num + _BLOCK - 1) // _BLOCK, block, row)


def solve_triangular(
    factor: Float[Array, "m m"], b: Float[Array, " m *n"], *, transpose: bool = False
) -> Float[Array, " m *n"]:
    """Solve L x = b, or L' x = b, for a lower triangular L.

    Args:
        factor: L; its lower triangle is used.
        b: a vector, or a matrix of columns.
        transpose: solve with L' instead of L.
    """

    def times(x: Array) -> Array:
        lower = jnp.tril(factor)
        return (lower.T if transpose else lower) @ x

    return lax.custom_linear_solve(
        times,
        b,
        lambda _, b: _substitute(factor, b, transpose=transpose),
        lambda _, b: _substitute(factor, b, transpose=not transpose),
    )


def _substitute(factor: Array, b: Array, *, transpose: bool) -> Array:
    """Solve by forward substitution; with rows and columns reversed, L' is lower triangular."""
    if transpose:
        return _substitute(factor[::-1, ::-1].T, b[::-1], transpose=False)[::-1]
    m, more = len(b), -len(b) % _BLOCK
    if m <= SMALL:
        (factor, b), x = _barrier((factor, b)), []
        for j in range(m):
            x.append(_barrier((b[j] - sum(factor[j, k] * x[k] for k in range(j))) / factor[j, j]))
        return jnp.asarray(x).reshape(b.shape)
    padded = jnp.pad(factor, ((0, 0), (0, more)))

    def row(j: Array, x: Array) -> Array:
        return x.at[j].set(_subtracted(b[j], padded[j], x, j) / factor[j, j])

    return lax.fori_loop(0, m, row, jnp.zeros((m + more, *b.shape[1:]), b.dtype))[:m]


def cholesky_solve(factor: Float[Array, "m m"], b: Float[Array, " m *n"]) -> Float[Array, " m *n"]:
    """Solve L L' x = b for a lower triangular L; b is a vector, or a matrix of columns."""
    return solve_triangular(factor, solve_triangular(factor, b), transpose=True)


def log_det(factor: Float[Array, "m m"]) -> Float[Array, ""]:
    """Return log det(L L') for a lower triangular L with positive diagonal, as from `cholesky`."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


def solve(matrix: Float[Array, "m m"], b: Float[Array, " m *n"]) -> Float[Array, " m *n"]:
    """Solve matrix @ x = b for a symmetric positive definite matrix."""
    return lax.custom_linear_solve(
        lambda x: matrix @ x, b, lambda _, b: cholesky_solve(cholesky(matrix), b), symmetric=True
    )


def largest_eigenvalue(matrix: Float[Array, "m m"]) -> Float[Array, ""]:
    """Bound the largest eigenvalue of a positive semidefinite matrix, from above to within 1 %.

    The matrix is squared several times. Of p_1, .., p_m >= 0 with sum 1, here normalised powers of
    the eigenvalues, none exceeds 1 / m + sqrt((1 - 1 / m) (sum p^2 - 1 / m)) (Samuelson 1968). This
    is at most (1 + sqrt(m)) / 2 times the largest, and a root is taken. Exact for one or two rows.
    """
    m = len(matrix)
    if m < 2:
        return jnp.maximum(jnp.sum(matrix), 0.0)
    num = math.ceil(math.log2(max(1.0, math.log(0.5 + 0.5 * math.sqrt(m)) / math.log(1.01))))
    is_zero = jnp.trace(matrix) <= 0
    power = jnp.where(is_zero, jnp.eye(m, dtype=matrix.dtype), matrix)
    trace = jnp.trace(power)

    def square(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        power, root, log_scale = state
        power = product(power, power)
        trace = jnp.trace(power)
        return power / trace, root / 2, log_scale + root / 2 * jnp.log(trace)

    # Invariant: matrix^(1 / root) = exp(log_scale / root) power, where power has trace 1.
    start = power / trace, jnp.ones_like(trace), jnp.log(trace)
    power, root, log_scale = lax.fori_loop(0, num, square, start)
    spread = (1 - 1 / m) * (jnp.sum(power**2) - 1 / m)
    excess = jnp.where(spread > 0, jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)
    return jnp.where(is_zero, 0.0, jnp.exp(log_scale + root * jnp.log(1 / m + excess)))


def product(a: Array, b: Array) -> Array:
    """Return a @ b in full precision, unrolled for tiny matrices, whose batches XLA is slow for."""
    if 0 < len(b) <= SMALL:
        return jnp.asarray(sum(a[:, k, None] * b[k] for k in range(len(b))))
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def symmetric_part(matrix: Array) -> Array:
    """Return the mean of a matrix and its transpose."""
    return (matrix + matrix.T) / 2
