"""Quadrature over x_0 given x_t: for few coordinates and likelihoods that are far from linear.

N(m, C), the Gaussian guess at x_0 given x_t, is split into narrower ones N(x_i, k C) of weight w_i
at Gauss-Hermite nodes, and the likelihood is averaged over each by Laplace's method:

    psi_t(x_t) = sum_i w_i E[r(x_0)] over N(x_i, k C)
    E[r] over N(x_i, k C) = r(x*) exp(-|v*|^2 / 2) det(I + K)^{-1/2},    x = x_i + (k C)^{1/2} v

where v* maximises log r - |v|^2 / 2 and K is the Fisher information about v: the two are exact for
a linear normal likelihood, and good wherever r has one hill in each of the narrow Gaussians.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...checks import as_float, check_float
from ..program import Values
from ..target import Target
from .base import (
    SLACK,
    Estimates,
    Linearised,
    Twisted,
    denoise,
    flat_like,
    learned_noise,
    require_kind,
    require_noise,
    shifted,
    tweedie_factor,
)
from .gaussian import AbstractGaussianTwist

_NUM_STEPS = 4  # of Newton's method at each node
_LONGEST_STEP = 2.0  # of v

_MOST_NODES = 1_000


@final
class Quadrature(AbstractGaussianTwist):
    """The likelihood averaged over N(E[x_0 given x_t], Cov[x_0 given x_t]) by quadrature.

    Sees what a linearisation does not: that a square has two roots, that a label may be certain
    elsewhere. For programs with few real coordinates: it costs `num_nodes` to the power of their
    number evaluations of the program, and a vector-Jacobian product for each coordinate.

    Args:
        num_nodes: in each direction.
        kept: the share k of the covariance that each node keeps.
        slack: as of `Tweedie`: a variance added where the network was learned.

    References:
        Julier and Uhlmann 2004, and Ito and Xiong 2000 (quadrature and Gaussian sums in filters).
    """

    num_nodes: int = eqx.field(static=True, default=5)
    kept: Float[Array, ""] = eqx.field(converter=as_float, default=0.25)
    slack: Float[Array, ""] = eqx.field(converter=as_float, default=SLACK)

    def __check_init__(self) -> None:
        if self.num_nodes < 2:
            raise ValueError(f"num_nodes={self.num_nodes} must be 2 or more.")
        check_float("kept", self.kept, 0.0, 1.0)

    def check(self, target: Target) -> None:
        """Real data in few coordinates, seen through noise."""
        require_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")
        require_noise(target, self, remedy="MomentMatching()")
        size = sum(np.prod(site.shape, dtype=int) for site in target.sites.diffusion.values())
        if self.num_nodes**size > _MOST_NODES:
            raise ValueError(
                f"twist=Quadrature() would need {self.num_nodes} to the power {size} nodes for the "
                f"{size} coordinates of {sorted(target.models())}; use twist=MomentMatching()."
            )

    def takes_jacobian(self, target: Target) -> bool:
        """See `AbstractGaussianTwist.takes_jacobian`."""
        del target
        return True

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""
        flat_x_t, unravel = ravel_pytree(x_t)

        def denoised(flat: Array) -> tuple[Array, Estimates]:
            estimates = denoise(target, unravel(flat), t, latents)
            return ravel_pytree({name: e.mean for name, e in estimates.items()})[0], estimates

        jacobian, estimates = jax.jacrev(denoised, has_aux=True)(flat_x_t)
        mean, _ = ravel_pytree({name: e.mean for name, e in estimates.items()})
        factor = flat_like(tweedie_factor(target, t), x_t)
        covariance = factor[:, None] * jacobian
        values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
        slack = self.slack * jnp.min(learned_noise(target, t, x_t))
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0) + slack)

        narrow = jnp.sqrt(self.kept) * root

        def node(unit: Array) -> tuple[Array, Array]:
            """log of the likelihood averaged over one narrow Gaussian, and the hill's place."""
            center = mean + jnp.sqrt(1 - self.kept) * root @ unit
            value, v = _laplace(target, lambda v: unravel(center + narrow @ v), latents, mean.size)
            return value, center + narrow @ v

        units, log_weights = _nodes(self.num_nodes, mean.size)
        log_densities, means = jax.vmap(node)(units)
        joint = log_weights + log_densities
        value = jax.nn.logsumexp(joint)
        shift = jax.nn.softmax(joint) @ (means - mean)
        # The gradient of log psi that Tweedie's formula says belongs to this shift.
        score = jnp.where(factor > 0, shift / jnp.where(factor > 0, factor, 1.0), 0.0)
        linear = Linearised(jnp.zeros(0), jnp.zeros((0, 0)), jnp.zeros((0, mean.size)), score)
        return Twisted(value, estimates, shifted(estimates, unravel(shift)), linear)


def _laplace(
    target: Target, place: Callable[[Array], Values], latents: Array, dimension: int
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """log E[r(place(v))] over v ~ N(0, I), and the v of the hill."""

    def objective(v: Array) -> Array:
        return target.log_likelihood(place(v), latents) - 0.5 * v @ v

    def information(v: Array) -> Array:
        """I + K at v."""
        seen = target.observations(place(v), latents, labels=True)
        if not seen.value.size:
            return jnp.eye(dimension)
        slope = jax.jacfwd(lambda v: target.observations(place(v), latents, labels=True).mean)(v)
        if isinstance(seen.covariance, lx.DiagonalLinearOperator):
            solved = slope / lx.diagonal(seen.covariance)[:, None]
        else:
            solved = jnp.linalg.solve(seen.covariance.as_matrix(), slope)
        return jnp.eye(dimension) + slope.T @ solved

    def step(v: Array, _: None) -> tuple[Array, None]:
        change = jnp.linalg.solve(information(v), jax.grad(objective)(v))
        length = jnp.linalg.norm(change)
        change = change * jnp.minimum(1.0, _LONGEST_STEP / jnp.maximum(length, 1e-30))
        return v + jnp.where(jnp.isfinite(change), change, 0.0), None

    def value(v: Array) -> Array:
        found = objective(v) - 0.5 * jnp.linalg.slogdet(information(v))[1]
        return jnp.where(jnp.isnan(found), -jnp.inf, found)

    start = jnp.zeros(dimension)
    end, _ = jax.lax.scan(step, start, None, length=_NUM_STEPS)
    # A climb that lost its way is given up.
    best = jnp.where(value(end) > value(start), end, start)
    return value(best), best


def _nodes(num: int, dimension: int) -> tuple[Float[Array, "nodes d"], Float[Array, " nodes"]]:
    """Gauss-Hermite nodes of N(0, I), and their log-weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(num)
    grid = np.meshgrid(*[points] * dimension, indexing="ij")
    log_grid = np.meshgrid(*[np.log(weights / weights.sum())] * dimension, indexing="ij")
    units = np.stack([axis.ravel() for axis in grid], axis=1)
    log_weights = np.sum([axis.ravel() for axis in log_grid], axis=0)
    return jnp.asarray(units, dtype=float), jnp.asarray(log_weights, dtype=float)
