"""Normal densities over observed numbers, by factorisation and by products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ... import linalg

MAX_DENSE = 32
"""Observed numbers up to which their covariance is a matrix; beyond, it is only multiplied by."""

_MAX_ITERATIONS = 30
_TOLERANCE = 1e-5  # of the residual, relative to the vector


def rounding_variance(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """A multiple of the identity that keeps `covariance` plus a tiny noise positive definite.

    Observations that repeat one another nearly without noise would otherwise have any solution.
    Part of a proposal or of a twist, it changes no target.
    """
    largest = jnp.max(jnp.diagonal(covariance), initial=0.0)
    return 100 * jnp.finfo(covariance.dtype).eps * largest * jnp.eye(len(covariance))


def log_density(white: Float[Array, " m"], factor: Float[Array, "m m"]) -> Float[Array, ""]:
    """log N(L white; 0, L L') in nats, from the lower Cholesky factor L."""
    return -0.5 * (white @ white + linalg.log_det(factor) + white.size * jnp.log(2 * jnp.pi))


def log_density_and_solution(
    residual: Float[Array, " m"], factor: Float[Array, "m m"]
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """log N(residual; 0, S) in nats and S^{-1} residual, from the lower Cholesky factor of S."""
    white = linalg.solve_triangular(factor, residual)
    solved = linalg.solve_triangular(factor, white, transpose=True)
    return log_density(white, factor), solved


def conjugate_gradients(
    times: Callable[[Array], Array], vector: Float[Array, " m"]
) -> Float[Array, " m"]:
    """The solution of times(s) = vector, for a symmetric positive operator, approximately.

    At most 30 iterations: one cut short still points towards the observations. Nothing depends on
    the scale of the operator (Lineax's CG takes operators below 200 eps n, as of sharp
    observations, for singular, and returns NaN).
    """

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, _, _, left, num = state
        return (left > _TOLERANCE**2 * (vector @ vector)) & (num < _MAX_ITERATIONS)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, left, num = state
        applied = times(direction)
        curvature = direction @ applied
        # Rounding can use up a direction, or turn it: then what was found so far stays.
        useful = curvature > 0
        step = jnp.where(useful, left / jnp.where(useful, curvature, 1.0), 0.0)
        solution, residual = solution + step * direction, residual - step * applied
        now = residual @ residual
        num = jnp.where(useful, num + 1, _MAX_ITERATIONS)
        return solution, residual, residual + now / left * direction, now, num

    start = (jnp.zeros_like(vector), vector, vector, vector @ vector, jnp.asarray(0))
    return jax.lax.while_loop(unfinished, iterate, start)[0]
