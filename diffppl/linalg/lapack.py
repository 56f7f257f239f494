"""LAPACK for single matrices that are too large for the loops of this package.

A mapped call runs in sequence, so that LAPACK is never called for a batch; see the package.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_batching.sequential_vmap
def eigh_lapack(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Return eigenvalues in ascending order, and eigenvectors as columns, of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors
