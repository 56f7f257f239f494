"""Quadrature over p(x_0 | x_t), for few coordinates and strongly non-linear likelihoods.

N(m, C), the Gaussian approximation to p(x_0 | x_t), is split into narrower components N(x_i, k C)
of weight w_i at Gauss-Hermite nodes, and the likelihood is averaged over each by Laplace's method:

    psi_t(x_t) = sum_i w_i E[r(x_0)] over N(x_i, k C)
    E[r] over N(x_i, k C) = r(x*) exp(-|v*|^2 / 2) det(I + K)^{-1/2},    x = x_i + (k C)^{1/2} v

where v* maximises log r - |v|^2 / 2 and K is the Fisher information about v. Both are exact for a
linear normal likelihood, and accurate where r is unimodal over each component.
"""

import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ... import linalg
from ...checks.arguments import as_float, check_float
from ..program import Values
from ..target import Estimates, Level, Target
from .base import (
    INFLATION,
    AbstractTwist,
    Twisted,
    check_kind,
    check_noise,
    check_one_stage,
    flat_like,
    learned_noise,
    only_score,
    shifted,
    tweedie_factor,
)
from .normal import LinearObservations

_NUM_STEPS = 4  # of Newton's method at each node
_MAX_STEP = 2.0  # norm of a Newton step in v, whose prior is N(0, I)
_MAX_NODES = 1_000  # in all, each of which evaluates the program


@final
class Quadrature(AbstractTwist):
    """The likelihood averaged over N(E[x_0 | x_t], Cov[x_0 | x_t]) by quadrature.

    Resolves what a linearisation does not, such as the two roots of a square, or a label that is
    certain only away from the mean. For programs with few real coordinates: d of them cost
    `num_nodes`^d evaluations of the program and d vector-Jacobian products.

    Args:
        num_nodes: number of nodes in each direction.
        kept: the fraction k of the covariance that each component keeps.
        inflation: variance added for learned networks, as in `Tweedie`.

    References:
        Julier and Uhlmann 2004, and Ito and Xiong 2000 (quadrature and Gaussian sums in filters).
    """

    num_nodes: int = eqx.field(static=True, default=5)
    kept: Float[Array, ""] = eqx.field(converter=as_float, default=0.25)
    inflation: Float[Array, ""] = eqx.field(converter=as_float, default=INFLATION)

    def __check_init__(self) -> None:
        if self.num_nodes < 2:
            raise ValueError(f"num_nodes={self.num_nodes} must be 2 or more.")
        check_float("kept", self.kept, 0.0, 1.0)

    def resolve(self, target: Target) -> "Quadrature":
        check_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        check_noise(target, self, remedy="MomentMatching()")
        check_one_stage(target, self, remedy="MomentMatching()")
        size = sum(math.prod(shape) for shape in target.structure.shapes.values())
        if self.num_nodes**size > _MAX_NODES:
            raise ValueError(
                f"twist=Quadrature() requires {self.num_nodes} to the power {size} nodes for the "
                f"{size} coordinates of {sorted(target.models)}; use twist=MomentMatching()."
            )
        return self

    def has_jacobian(self, target: Target) -> bool:
        del target
        return True  # for the covariance

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        names = target.sites()
        flat_x, unravel = ravel_pytree(x)

        def denoised(flat: Array) -> tuple[Array, Estimates]:
            estimates = target.estimate(unravel(flat), level, latents)
            return ravel_pytree({name: e.mean for name, e in estimates.items()})[0], estimates

        jacobian, estimates = jax.jacrev(denoised, has_aux=True)(flat_x)
        mean, _ = ravel_pytree({name: e.mean for name, e in estimates.items()})
        factor = flat_like(tweedie_factor(target, level, names), x)
        covariance = factor[:, None] * jacobian  # Tweedie's formula
        values, vectors = linalg.eigh((covariance + covariance.T) / 2)
        # Each site has its own eigenvectors, over which its noise is constant.
        noise = flat_like(learned_noise(target, level, names), x) @ vectors**2
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0) + self.inflation * noise)
        narrow = jnp.sqrt(self.kept) * root

        def node(unit: Array) -> tuple[Array, Array]:
            """log of the likelihood averaged over one component, and the mode."""
            center = mean + jnp.sqrt(1 - self.kept) * root @ unit
            value, v = _laplace(target, lambda v: unravel(center + narrow @ v), latents, mean.size)
            return value, center + narrow @ v

        units, log_weights = _nodes(self.num_nodes, mean.size)
        log_densities, means = jax.vmap(node)(units)
        joint = log_weights + log_densities
        value = jax.nn.logsumexp(joint)
        # The kernel is unguided if the likelihood is not finite at any node.
        weights = jax.nn.softmax(jnp.where(jnp.any(jnp.isfinite(joint)), joint, log_weights))
        shift = weights @ (means - mean)
        # Tweedie's formula: shift = factor * d log psi / dx_t.
        score = jnp.where(factor > 0, shift / jnp.where(factor > 0, factor, 1.0), 0.0)
        guided = shifted(estimates, unravel(shift))
        return Twisted(value, estimates, guided, {}, only_score(score))


def _laplace(
    target: Target, place: Callable[[Array], Values], latents: Array, dimension: int
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """log E[r(place(v))] over v ~ N(0, I) by Laplace's method, and the mode v*."""

    def objective(v: Array) -> Array:
        return target.log_likelihood(place(v), latents) - 0.5 * v @ v

    def newton(v: Array) -> tuple[Array, Array]:
        """Gauss-Newton step, and log det(I + S' R^{-1} S), for moments of slope S and noise R.

        With fewer observations than coordinates, both are computed in the dimension of the
        observations: float32 does not resolve I in I + S' R^{-1} S if the noise is small. With
        K = S' (S S' + R)^{-1}, the residual r and the gradient g, the step is

            K (r + S v) - v + (I - K S) (g + v - S' R^{-1} r).
        """
        linear = LinearObservations(
            lambda v: target.observations(place(v), latents, labels=True), v
        )
        slope, residual = jax.vmap(linear.push)(jnp.eye(dimension)).T, linear.residual
        gradient = jax.grad(objective)(v)
        if not residual.size:
            return gradient, jnp.zeros(())
        if residual.size > dimension:
            operator = linear.at.covariance
            if isinstance(operator, lx.DiagonalLinearOperator):
                solved = slope / lx.diagonal(operator)[:, None]
            else:
                solved = linalg.cholesky_solve(linalg.cholesky(operator.as_matrix()), slope)
            information = linalg.cholesky(jnp.eye(dimension) + slope.T @ solved)
            return linalg.cholesky_solve(information, gradient), linalg.log_det(information)
        covariance = linear.at.covariance.as_matrix()
        noise, total = linalg.cholesky(covariance), linalg.cholesky(slope @ slope.T + covariance)

        def kalman_gain(residual: Array) -> Array:
            return slope.T @ linalg.cholesky_solve(total, residual)

        rest = gradient + v - slope.T @ linalg.cholesky_solve(noise, residual)
        step = kalman_gain(residual + slope @ v) - v + rest - kalman_gain(slope @ rest)
        return step, linalg.log_det(total) - linalg.log_det(noise)

    def iterate(v: Array, _: None) -> tuple[Array, None]:
        step = newton(v)[0]
        step = step * jnp.minimum(1.0, _MAX_STEP / jnp.maximum(jnp.linalg.norm(step), 1e-30))
        return v + jnp.where(jnp.isfinite(step), step, 0.0), None

    def value(v: Array) -> Array:
        log_mean = objective(v) - 0.5 * newton(v)[1]
        return jnp.where(jnp.isnan(log_mean), -jnp.inf, log_mean)

    start = jnp.zeros(dimension)
    end, _ = jax.lax.scan(iterate, start, None, length=_NUM_STEPS)
    # Newton's method may diverge: the start is kept if its value is larger.
    best = jnp.where(value(end) > value(start), end, start)
    return value(best), best


def _nodes(num: int, dimension: int) -> tuple[Float[Array, "nodes d"], Float[Array, " nodes"]]:
    """Gauss-Hermite nodes of N(0, I) on a product grid, and their log-weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(num)
    grid = np.meshgrid(*[points] * dimension, indexing="ij")
    log_grid = np.meshgrid(*[np.log(weights / weights.sum())] * dimension, indexing="ij")
    units = np.stack([axis.ravel() for axis in grid], axis=1)
    log_weights = np.sum([axis.ravel() for axis in log_grid], axis=0)
    return jnp.asarray(units, dtype=float), jnp.asarray(log_weights, dtype=float)
