"""Dense linear algebra for one small matrix, to be batched by `jax.vmap`, without LAPACK.

`jnp.linalg` calls LAPACK once for a whole batch. On CPUs such a call runs on a thread of XLA's
pool, distributes its batch over the same pool and waits: as many concurrent calls as threads
deadlock (jaxlib 0.10, even with `lax.optimization_barrier`). Here a factorisation is a loop of a
few vectorised operations, compiled with the code around it. It is as accurate as LAPACK's, and
compiles as fast for a large matrix as for a small one; see `benchmarks/small_linear_algebra.py`.

All functions take one matrix of a fixed size m, zero included, and can be differentiated any number
of times. A matrix that is not positive definite or not finite gives NaN, as with LAPACK.

References:
    Golub and Van Loan 2013, "Matrix Computations", 4.2 (Cholesky) and 8.5 (Jacobi).
    Brent and Luk 1985 (the parallel order of Jacobi rotations).
    Higham 2008, "Functions of Matrices", chapters 3 and 5 (derivatives; iterations for the sign).
    Murray 2016, "Differentiation of the Cholesky decomposition".
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

# Sizes at which one algorithm becomes faster than another, as measured on CPUs.
_BLOCK = 4  # rows that are subtracted at a time
_WHOLE = 16  # rows up to which a matrix is factorised in one loop
_SMALL = 8  # rows up to which loops and products are unrolled, and eigenvectors are cheap

Pair = tuple[Array, Array]
_barrier = lax.optimization_barrier  # else XLA recomputes a row, with other rounding, at each use


# Positive definite matrices ----------------------------------------------------------------------


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
    white = solve_triangular(factor, solve_triangular(factor, _symmetric(*tangents)).T)
    return factor, _product(factor, jnp.tril(white) - jnp.diag(jnp.diagonal(white) / 2))


def _upper_factor(matrix: Array) -> Array:
    """Return L': each row is that of the matrix, minus multiples of the rows above, and scaled."""
    m = len(matrix)
    num = m if m <= _WHOLE else -(-m // 2)

    def scaled(found: Array, j: Array | int) -> Array:
        return jnp.where(jnp.arange(m) >= j, found / jnp.sqrt(found[j]), 0.0)

    if m <= _SMALL:
        matrix, rows = _barrier(matrix), []
        for j in range(m):
            rows.append(_barrier(scaled(matrix[j] - sum(above[j] * above for above in rows), j)))
        return jnp.asarray(rows).reshape(m, m)

    def row(j: Array, upper: Array) -> Array:
        return upper.at[j].set(scaled(_subtracted(matrix[j], upper[:, j], upper, j), j))

    start = jnp.zeros((num + -num % _BLOCK, m), matrix.dtype)
    upper = lax.fori_loop(0, num, row, start)[:num]
    if num == m:
        return upper
    right = upper[:, num:]  # these were the first rows; then those of the Schur complement
    rest = _upper_factor(matrix[num:, num:] - _product(right.T, right))
    return jnp.concatenate([upper, jnp.pad(rest, ((0, 0), (num, 0)))])


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
    if m <= _SMALL:
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

    def square(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        power, root, log_scale = state
        power = _product(power, power)
        trace = jnp.trace(power)
        return power / trace, root / 2, log_scale + root / 2 * jnp.log(trace)

    # Invariant: matrix^(1 / root) = exp(log_scale / root) power, where power has trace 1.
    trace = jnp.trace(power)
    start = power / trace, jnp.ones_like(trace), jnp.log(trace)
    power, root, log_scale = lax.fori_loop(0, num, square, start)
    spread = (1 - 1 / m) * (jnp.sum(power**2) - 1 / m)
    excess = jnp.where(spread > 0, jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)
    return jnp.where(is_zero, 0.0, jnp.exp(log_scale + root * jnp.log(1 / m + excess)))


# Symmetric matrices ------------------------------------------------------------------------------


@jax.custom_jvp
def eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Return eigenvalues in ascending order, and eigenvectors as columns, of a symmetric matrix.

    Uses Jacobi rotations, for small matrices: faster than LAPACK in float32 up to about 8 rows, and
    much slower from 16 on. The errors are those of LAPACK up to 12 rows, and 8 times as large at
    40. The derivative of the vectors is undefined among equal eigenvalues, and set to zero.
    """
    values, vectors = _jacobi(matrix)
    order = jnp.argsort(values)
    return values[order], vectors[:, order]


@eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Pair, Pair]:
    values, vectors = eigh(*primals)
    change = _product(vectors.T, _product(_symmetric(*tangents), vectors))
    gap = values - values[:, None]
    distinct = jnp.abs(gap) > 4 * jnp.finfo(gap.dtype).eps * jnp.max(jnp.abs(values), initial=0.0)
    rotation = jnp.where(distinct, change / jnp.where(distinct, gap, 1.0), 0.0)
    return (values, vectors), (jnp.diagonal(change), _product(vectors, rotation))


@custom_vmap
def _jacobi(matrix: Array) -> Pair:
    """Return unsorted eigenvalues, and eigenvectors."""
    values, vectors = _jacobi_of_many(matrix[..., None])
    return values[..., 0], vectors[..., 0]


@_jacobi.def_vmap
def _jacobi_mapped(_: int, __: list[bool], matrices: Array) -> tuple[Pair, tuple[bool, bool]]:
    """Move the batch to the last axis, over which XLA vectorises: three times as fast."""
    values, vectors = _jacobi_of_many(jnp.moveaxis(matrices, 0, -1))
    return (jnp.moveaxis(values, -1, 0), jnp.moveaxis(vectors, -1, 0)), (True, True)


def _jacobi_of_many(matrices: Float[Array, "m m n"]) -> tuple[Array, Array]:
    """Rotate in the planes of all positions i and i + m / 2, then permute the coordinates.

    As in a round-robin tournament, the m - 1 rounds of a sweep pair all and restore their order.
    """
    m, dtype = len(matrices), matrices.dtype
    if m < 2:
        return matrices.sum(axis=0), jnp.ones_like(matrices)
    size, half = m + m % 2, (m + 1) // 2  # an odd size is padded with zeros
    positions = jnp.arange(size)  # a custom_vmap with constants fails in a batched lax.cond
    top, bottom = positions[:half], positions[half:]
    moved = jnp.concatenate([top[:1], bottom[:1], top[1:-1], bottom[1:], top[1:][-1:]])
    partner = jnp.roll(positions, half)[moved]

    def one_round(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, rows = state
        off, gap = a[top, bottom], a[bottom, bottom] - a[top, top]
        # The smaller of the two angles that annihilate the off-diagonal element.
        length = jnp.abs(gap) + jnp.sqrt(gap**2 + 4 * off**2)
        tangent = 2 * jnp.where(gap < 0, -off, off) / jnp.where(length > 0, length, 1.0)
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        own = jnp.concatenate([cosine, cosine])[moved]
        other = jnp.concatenate([-cosine * tangent, cosine * tangent])[moved]
        a = own[:, None] * a[moved] + other[:, None] * a[partner]
        a = own * a[:, moved] + other * a[:, partner]
        return a, own[:, None] * rows[moved] + other[:, None] * rows[partner]

    largest = jnp.max(jnp.abs(matrices), axis=(0, 1))
    scale = jnp.where(largest > 0, largest, 1.0)
    a = jnp.pad(matrices / scale, ((0, size - m), (0, size - m), (0, 0)))
    rows = jnp.broadcast_to(jnp.eye(size, dtype=dtype)[..., None], a.shape)
    # Enough for equal eigenvalues, the slowest to converge: one and a half digits in a sweep.
    num_sweeps = math.ceil((2.5 if dtype == jnp.float32 else 4.5) * math.log2(m))
    a, rows = lax.fori_loop(0, num_sweeps * (size - 1), one_round, (a, rows))
    return scale * a[positions[:m], positions[:m]], rows[:m, :m].swapaxes(0, 1)


@jax.custom_jvp
def nearest_psd(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return the positive semidefinite matrix nearest to a square one (Higham 1988), to rounding.

    It is (B + |B|) / 2 for the symmetric part B: negative eigenvalues are set to zero.
    """
    matrix = _symmetric(matrix)
    if len(matrix) <= _SMALL:
        values, vectors = _jacobi(matrix)
        return _symmetric(_product(vectors * jnp.maximum(values, 0.0), vectors.T))
    norm = jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    num_bits = -math.log2(jnp.finfo(matrix.dtype).eps)

    # x (2 - 1.185 x^2) doubles small eigenvalues and keeps all within 1; then Newton-Schulz steps.
    def towards_sign(step: Array, x: Array) -> Array:
        is_early = step < num_bits
        cube = _product(x, _product(x, x))
        return jnp.where(is_early, 2.0, 1.5) * x - jnp.where(is_early, 1.185, 0.5) * cube

    start = matrix / jnp.where(norm > 0, norm, 1.0)
    sign = lax.fori_loop(0, math.ceil(num_bits) + 5, towards_sign, start)
    return _symmetric(matrix + _product(matrix, sign)) / 2


@nearest_psd.defjvp
def _nearest_positive_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    values, vectors = eigh(_symmetric(*primals))
    sizes = jnp.abs(values) + jnp.abs(values[:, None])
    kept = jnp.maximum(values, 0.0) + jnp.maximum(values[:, None], 0.0)
    # Daleckii and Krein: divided differences of max(., 0), in a form without cancellation.
    ratio = jnp.where(sizes > 0, kept / jnp.where(sizes > 0, sizes, 1.0), 0.5)
    change = _product(vectors.T, _product(_symmetric(*tangents), vectors))
    return nearest_psd(*primals), _product(_product(vectors, ratio * change), vectors.T)


def _product(a: Array, b: Array) -> Array:
    """Return a @ b in full precision, unrolled for tiny matrices, whose batches XLA is slow for."""
    if 0 < len(b) <= _SMALL:
        return jnp.asarray(sum(a[:, k, None] * b[k] for k in range(len(b))))
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
