"""The covariance of the observations that the particles of a level share."""

from collections.abc import Callable
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from ... import linalg
from .normal import conjugate_gradients, square_root

_PROPORTIONAL = 1e-4  # largest relative deviation of R from a multiple of R_0 that is ignored
_NUM_ITERATIONS = 5  # of the subspace iteration for the directions
_SHIFT = 1e-3  # of its spectrum, relative to the trace: the directions exist for equal references


class ReferenceMoments(NamedTuple):
    """Moments of the observations at one particle: H C H', R, H, H J and H J^2."""

    covariance: Float[Array, "m m"]
    noise: lx.AbstractLinearOperator
    jacobian: Float[Array, "m d"]
    first: Float[Array, "m d"]
    second: Float[Array, "m d"]


@final
class Pool(eqx.Module):
    """Quantities of one level that all particles share.

    Attributes:
        whitener: E.
        values: the diagonal of E B E'.
        squares: squared entries of the orthogonal matrix whose rows are eigenvectors of E B E'.
        noise: R_0.
        log_det_noise: log det R_0.
        directions: V.
        spread: E Z.
        projected: V' B V.
        jacobian: E H over the running stage.
        first: E H J, with J = dE[x_0 | x_t] / dx_t.
        second: E H J^2.
    """

    whitener: Float[Array, "m m"]
    values: Float[Array, " m"]
    squares: Float[Array, "m m"]
    noise: lx.AbstractLinearOperator
    log_det_noise: Float[Array, ""]
    directions: Float[Array, "m q"]
    spread: Float[Array, "m q"]
    projected: Float[Array, "q q"]
    jacobian: Float[Array, "m d"]
    first: Float[Array, "m d"]
    second: Float[Array, "m d"]

    def noise_scale(self, noise: lx.AbstractLinearOperator) -> Float[Array, ""]:
        """Return c of the nearest multiple c R_0 of the pooled noise."""
        return jnp.mean(lx.diagonal(noise) / lx.diagonal(self.noise))

    def solve(
        self, noise: lx.AbstractLinearOperator, columns: Float[Array, "m k"]
    ) -> tuple[Float[Array, "m k"], Float[Array, ""]]:
        """Solve (E B E' + E R E') x = b for each column; also return log det(B + R)."""
        ratio, scale = lx.diagonal(noise) / lx.diagonal(self.noise), self.noise_scale(noise)
        gap = jnp.max(jnp.abs(ratio - scale))
        if not isinstance(noise, lx.DiagonalLinearOperator):
            reference = scale * self.noise.as_matrix()
            largest = jnp.max(jnp.abs(self.noise.as_matrix()))
            gap = jnp.max(jnp.abs(noise.as_matrix() - reference)) / largest
        is_proportional = gap <= _PROPORTIONAL * scale
        total = self.values + scale
        root = jnp.sqrt(total)

        def times(v: Array) -> Array:
            v = v / root
            return (self.values * v + self.whitener @ noise.mv(self.whitener.T @ v)) / root

        def solve(b: Array) -> Array:
            b = b / root
            # No iterations where the solution is known.
            found = conjugate_gradients(times, jnp.where(is_proportional, 0.0, b))
            return jnp.where(is_proportional, b, found) / root

        # log det(I + E) = sum of log(1 + E_jj) for a diagonal E = (B + c R_0)^{-1} (R - c R_0).
        relative = (self.squares.T @ (1 / total)) * (ratio - scale)
        relative = jnp.where(is_proportional, 0.0, relative)
        log_det = jnp.sum(jnp.log(total)) + jnp.sum(jnp.log1p(relative)) + self.log_det_noise
        return jax.vmap(solve, in_axes=1, out_axes=1)(columns), log_det


def make_pool(found: ReferenceMoments, weights: Float[Array, " r"], num_directions: int) -> Pool:
    """Average the moments of the references, and find the directions in which they differ.

    Args:
        found: moments with a leading axis of references.
        weights: weights of the references, with sum 1.
        num_directions: number of directions, at most m.
    """
    mean = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), found)
    covariance, root = mean.covariance, square_root(mean.noise)
    m = len(covariance)
    whitener = (
        jnp.diag(1 / lx.diagonal(root))
        if isinstance(root, lx.DiagonalLinearOperator)
        else linalg.solve_triangular(root.as_matrix(), jnp.eye(m))
    )
    values, vectors = linalg.eigh_lapack(whitener @ covariance @ whitener.T)
    values = jnp.maximum(values, 0.0)  # those of a learned denoiser may be negative
    whitener = vectors.T @ whitener
    scaled = whitener / jnp.sqrt(values + 1)[:, None]  # (B + R_0)^{-1/2}
    changes = jax.vmap(lambda each: scaled @ (each - covariance) @ scaled.T)(found.covariance)

    def times(z: Array) -> Array:
        return jnp.einsum("r,rij,rjq->iq", weights, changes, changes @ z)

    u = _leading(times, m, num_directions)
    return Pool(
        whitener,
        values,
        vectors.T**2,
        mean.noise,
        2 * jnp.sum(jnp.log(lx.diagonal(root))),
        scaled.T @ u,
        jnp.sqrt(values + 1)[:, None] * u,
        u.T @ ((values / (values + 1))[:, None] * u),
        whitener @ mean.jacobian,
        whitener @ mean.first,
        whitener @ mean.second,
    )


def _leading(times: Callable[[Array], Array], size: int, num: int) -> Float[Array, "size num"]:
    """Return leading eigenvectors of a positive semidefinite matrix, by subspace iteration."""

    def orthonormal(z: Array) -> Array:
        columns: list[Array] = []
        for column in z.T:
            for _ in range(2):  # the second time for rounding
                column = column - sum(other * (other @ column) for other in columns)
            columns.append(column / jnp.linalg.norm(column))
        return jnp.stack(columns, axis=1)

    def iterate(_: Array, z: Array) -> Array:
        product = times(z)
        trace = jnp.sum(z * product)
        product = product / jnp.where(trace > 0, trace, 1.0)
        return orthonormal(product + _SHIFT * z)

    start = orthonormal(jax.random.normal(jax.random.key(0), (size, num)))
    return jax.lax.fori_loop(0, _NUM_ITERATIONS, iterate, start)
