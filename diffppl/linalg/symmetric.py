"""Eigenvalues, eigenvectors and positive parts of symmetric matrices.

References:
    Golub and Van Loan 2013, "Matrix Computations", 8.5 (Jacobi).
    Brent and Luk 1985 (the parallel order of Jacobi rotations).
    Higham 2008, "Functions of Matrices", chapters 3 and 5 (derivatives; iterations for the sign).
    Chen and Chow 2014, "A stable scaling of Newton-Schulz iterations".
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from .positive_definite import SMALL, product, symmetric_part

Pair = tuple[Array, Array]


@jax.custom_jvp
def eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Return eigenvalues in ascending order, and eigenvectors as columns, of a symmetric matrix.

    Uses Jacobi rotations: faster than LAPACK in float32 up to about 8 rows, much slower from 16 on.
    The errors are those of LAPACK up to 12 rows, and 8 times as large at 40. The derivative of the
    vectors is undefined among equal eigenvalues, and set to zero.
    """
    values, vectors = _jacobi(matrix)
    order = jnp.argsort(values)
    return values[order], vectors[:, order]


@eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Pair, Pair]:
    values, vectors = eigh(*primals)
    change = product(vectors.T, product(symmetric_part(*tangents), vectors))
    gap = values - values[:, None]
    distinct = jnp.abs(gap) > 4 * jnp.finfo(gap.dtype).eps * jnp.max(jnp.abs(values), initial=0.0)
    rotation = jnp.where(distinct, change / jnp.where(distinct, gap, 1.0), 0.0)
    return (values, vectors), (jnp.diagonal(change), product(vectors, rotation))


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
    matrix = symmetric_part(matrix)
    if len(matrix) <= SMALL:
        values, vectors = _jacobi(matrix)
        return symmetric_part(product(vectors * jnp.maximum(values, 0.0), vectors.T))
    norm = jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    scales = jnp.asarray(_sign_scales(float(jnp.finfo(matrix.dtype).eps)), matrix.dtype)

    def towards_sign(step: Array, x: Array) -> Array:
        return scales[step] * (1.5 * x - 0.5 * scales[step] ** 2 * product(x, product(x, x)))

    start = matrix / jnp.where(norm > 0, norm, 1.0)
    sign = lax.fori_loop(0, len(scales), towards_sign, start)
    return symmetric_part(matrix + product(matrix, sign)) / 2


def _sign_scales(low: float) -> list[float]:
    """Return scales r of steps r x (3 - r^2 x^2) / 2 that move all |x| in [low, 1] to 1.

    The smallest |x| grows by 2.5 in a step (at most by 2.6, which would move 1 to it).
    """
    scales = []
    while low < 1 - 1e-4:
        bound = max(low, 0.1)
        scales.append(math.sqrt(3 / (1 + bound + bound**2)))
        low = scales[-1] * low * (3 - (scales[-1] * low) ** 2) / 2
    return [*scales, 1.0, 1.0]


@nearest_psd.defjvp
def _nearest_positive_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    values, vectors = eigh(symmetric_part(*primals))
    sizes = jnp.abs(values) + jnp.abs(values[:, None])
    kept = jnp.maximum(values, 0.0) + jnp.maximum(values[:, None], 0.0)
    # Daleckii and Krein: divided differences of max(., 0), in a form without cancellation.
    ratio = jnp.where(sizes > 0, kept / jnp.where(sizes > 0, sizes, 1.0), 0.5)
    change = product(vectors.T, product(symmetric_part(*tangents), vectors))
    return nearest_psd(*primals), product(product(vectors, ratio * change), vectors.T)
