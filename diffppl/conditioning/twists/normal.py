"""Normal densities of observations, by factorisation and by matrix-vector products."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from ... import linalg
from ..moments import Observations

MAX_DENSE = 32
"""Number of observations up to which their covariance is formed as a matrix."""

_MAX_ITERATIONS = 30
_TOLERANCE = 1e-5  # on the norm of the residual, relative to that of the vector


@final
class LinearObservations(eqx.Module):
    """Observations as a function of x_0, linearised: h(x_0 + v) = h(x_0) + H v.

    Attributes:
        at: the observations at x_0.
        gradient: gradient of `log_rest`.
        push: multiplies a vector by H.
        pull: multiplies a vector by H'.
    """

    at: Observations
    gradient: Float[Array, " d"]
    push: Callable[[Array], Array]
    pull: Callable[[Array], Array]

    def __init__(self, observe: Callable[[Array], Observations], x_0: Float[Array, " d"]) -> None:
        def outputs(flat: Array) -> tuple[tuple[Array, Array], Observations]:
            observations = observe(flat)
            return (observations.mean, observations.log_rest), observations

        _, push, self.at = jax.linearize(outputs, x_0, has_aux=True)
        # Transposed separately: a zero times an infinite derivative of the other output is NaN.
        pull_mean = jax.linear_transpose(lambda vector: push(vector)[0], x_0)
        pull_rest = jax.linear_transpose(lambda vector: push(vector)[1], x_0)
        self.push = lambda vector: push(vector)[0]
        self.pull = lambda vector: pull_mean(vector)[0]
        (self.gradient,) = pull_rest(jnp.ones_like(self.at.log_rest))

    @property
    def residual(self) -> Float[Array, " m"]:
        """y - h(x_0)."""
        return self.at.value - self.at.mean

    def jacobian(self) -> Float[Array, "m d"]:
        """Return H."""
        return jax.vmap(self.pull)(jnp.eye(self.at.mean.size))


def rounding_variance(covariance: Float[Array, "m m"]) -> Float[Array, ""]:
    """Return a variance that keeps `covariance` plus small noise positive definite.

    Without it the solution for nearly noiseless observations of the same number is arbitrary. It is
    only used in proposals and twists, and so changes no target.
    """
    largest = jnp.max(jnp.diagonal(covariance), initial=0.0)
    return 100 * float(jnp.finfo(covariance.dtype).eps) * largest


def square_root(
    covariance: lx.AbstractLinearOperator, variance: Float[Array, ""] | float = 0.0
) -> lx.AbstractLinearOperator:
    """Return a lower triangular M with M M' = covariance + variance I; diagonal if that is."""
    if isinstance(covariance, lx.DiagonalLinearOperator):
        return lx.DiagonalLinearOperator(jnp.sqrt(lx.diagonal(covariance) + variance))
    matrix = covariance.as_matrix() + variance * jnp.eye(covariance.out_size())
    return lx.MatrixLinearOperator(linalg.cholesky(matrix), lx.lower_triangular_tag)


def whitened(root: lx.AbstractLinearOperator, vector: Float[Array, " m"]) -> Float[Array, " m"]:
    """Return M^{-1} vector for a result M of `square_root`."""
    if isinstance(root, lx.DiagonalLinearOperator):
        return vector / lx.diagonal(root)
    return linalg.solve_triangular(root.as_matrix(), vector)


def log_density(white: Float[Array, " m"], diagonal: Float[Array, " m"]) -> Float[Array, ""]:
    """Return log N(L white; 0, L L') in nats, from the diagonal of the lower triangular L."""
    return -0.5 * (white @ white + white.size * jnp.log(2 * jnp.pi)) - jnp.sum(jnp.log(diagonal))


def conjugate_gradients(
    times: Callable[[Array], Array], vector: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Solve times(s) = vector approximately, for a symmetric positive definite operator.

    Runs at most 30 iterations: a truncated solution still points towards the observations. The
    result is independent of the scale of the operator (Lineax's CG treats operators below
    200 eps n, which occur with precise observations, as singular and returns NaN).
    """

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, _, _, norm2, num = state
        return (norm2 > _TOLERANCE**2 * (vector @ vector)) & (num < _MAX_ITERATIONS)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, norm2, num = state
        applied = times(direction)
        curvature = direction @ applied
        # Rounding can make the curvature zero or negative: stop with the current solution.
        is_positive = curvature > 0
        step = jnp.where(is_positive, norm2 / jnp.where(is_positive, curvature, 1.0), 0.0)
        solution, residual = solution + step * direction, residual - step * applied
        new_norm2 = residual @ residual
        num = jnp.where(is_positive, num + 1, _MAX_ITERATIONS)
        return solution, residual, residual + new_norm2 / norm2 * direction, new_norm2, num

    start = (jnp.zeros_like(vector), vector, vector, vector @ vector, jnp.asarray(0))
    return jax.lax.while_loop(unfinished, iterate, start)[0]
