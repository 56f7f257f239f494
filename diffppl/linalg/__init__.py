"""Dense linear algebra for one small matrix, to be batched by `jax.vmap`, without LAPACK.

`jnp.linalg` calls LAPACK once for a whole batch. On CPUs such a call runs on a thread of XLA's
pool, distributes its batch over the same pool and waits: as many concurrent calls as threads
deadlock (jaxlib 0.10, even with `lax.optimization_barrier`). Here a factorisation is a loop of a
few vectorised operations, compiled with the code around it. It is as accurate as LAPACK's, and
compiles as fast for a large matrix as for a small one; see `benchmarks/small_linear_algebra.py`.

All functions take one matrix of a fixed size m, zero included, and can be differentiated any number
of times. A matrix that is not positive definite or not finite gives NaN, as with LAPACK.
"""

from .lapack import eigh_lapack
from .positive_definite import (
    cholesky,
    cholesky_solve,
    largest_eigenvalue,
    log_det,
    solve,
    solve_triangular,
)
from .symmetric import eigh, nearest_psd

__all__ = [
    "cholesky",
    "cholesky_solve",
    "eigh",
    "eigh_lapack",
    "largest_eigenvalue",
    "log_det",
    "nearest_psd",
    "solve",
    "solve_triangular",
]
