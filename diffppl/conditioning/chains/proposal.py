"""The distribution of the noise of a step that the particles share."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ... import linalg

MAX_EXPLAINED = 0.98
"""Largest share of the covariance of the observations that one step may explain. The remainder must
be positive definite in float32: its condition number is then at most 50."""


@final
class PooledProposal(eqx.Module):
    """z ~ N(u, I - G' (B + c I)^{-1} G), for a noise variance c of each particle.

    In the coordinates of a `Pool`, in which B is diagonal and its noise I. With W = (B + I)^{-1/2}
    and the eigendecomposition W G G' W = O D O',

        G' (B + c I)^{-1} G = G' W O M O' W G,    M = O' (B + I) (B + c I)^{-1} O,

    of which M is replaced by its diagonal: exact for c = 1, and q is normalised for any c.

    Args:
        values: the diagonal of B.
        cross: G, the cross-covariance of the observations and z.
    """

    rows: Float[Array, "m d"]
    shares: Float[Array, " m"]
    squares: Float[Array, "m m"]
    values: Float[Array, " m"]

    def __init__(self, values: Float[Array, " m"], cross: Float[Array, "m d"]) -> None:
        scaled = cross / jnp.sqrt(values + 1)[:, None]
        self.shares, vectors = linalg.eigh_lapack(scaled @ scaled.T)
        self.rows, self.squares, self.values = vectors.T @ scaled, vectors.T**2, values

    def draw(
        self, key: Array, u: Float[Array, " d"], noise: Float[Array, ""]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """Draw z; also return log N(z; 0, I) - log q(z).

        Args:
            key: a typed JAX key.
            u: the mean.
            noise: c.
        """
        scales = self.squares @ ((self.values + 1) / (self.values + noise))
        explained = jnp.clip(self.shares * scales, 0.0, MAX_EXPLAINED)
        root = jnp.sqrt(1 - explained)
        # (1 - root) / shares without a division by shares that are zero.
        shrinkage = explained / ((1 + root) * jnp.where(self.shares > 0, self.shares, 1.0))
        e = jax.random.normal(key, u.shape, u.dtype)
        change = self.rows.T @ (shrinkage * (self.rows @ e))
        # log N(e - change; 0, I) - log N(e; 0, I), and the determinant of e -> e - change.
        log_ratio = jnp.sum(change * (e - 0.5 * change)) + jnp.sum(jnp.log(root))
        e = e - change
        return u + e, log_ratio - jnp.sum(u * (0.5 * u + e))
