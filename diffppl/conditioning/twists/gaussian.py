"""Arithmetic that twists on real data share: normal densities and the conditioned edge step."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..program import Values
from ..target import Observations, Target
from .base import Estimates


def normal_log_density(
    residual: Float[Array, " m"], covariance: Float[Array, "m m"]
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """log N(residual; 0, covariance) in nats, and covariance^{-1} residual."""
    factor = jax.scipy.linalg.cho_factor(covariance, lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, residual)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor[0])))
    constant = residual.size * jnp.log(2 * jnp.pi)
    return -0.5 * (residual @ solved + log_det + constant), solved


def edge_given_observations(
    key: Array, target: Target, x_1: Values, estimates: Estimates, latents: Array
) -> tuple[Values, Float[Array, ""]]:
    """Draw x_0 from the edge kernel conditioned on the observations, linearised at its mean.

    The kernel p = N(m, V) is first moved along the gradient of the sites that have no moments,
    to q' = N(m + c, V), then conditioned on the linearised observed sites g: q = q' g / Z. With
    linear Gaussian observations q is the exact conditional and the final weights are constant.

    Returns:
        x_0, and log p(x_0) - log q(x_0) = log(p / q') + log Z - log g.
    """
    edges = {
        name: model.process.edge(x_1[name], estimates[name])
        for name, model in target.models().items()
    }
    mean, unravel = ravel_pytree({name: edge.mean for name, edge in edges.items()})
    variance, _ = ravel_pytree(
        {name: jnp.broadcast_to(edge.variance, edge.mean.shape) for name, edge in edges.items()}
    )

    def observe(flat: Array) -> Observations:
        return target.observations(unravel(flat), latents)

    key_x, key_y = jax.random.split(key)
    seen = observe(mean)
    shift = variance * jax.grad(lambda flat: observe(flat).log_rest)(mean)
    step = jnp.sqrt(variance) * jax.random.normal(key_x, mean.shape, mean.dtype)
    log_ratio = jnp.zeros(())
    if seen.value.size:
        jacobian = jax.jacrev(lambda flat: observe(flat).mean)(mean)
        total = (jacobian * variance) @ jacobian.T + seen.covariance
        residual = seen.value - seen.mean - jacobian @ shift
        # Matheron's rule: correct a joint draw of (x, y) by the residual of its own y.
        noise = jax.random.normal(key_y, residual.shape, mean.dtype)
        drawn = jacobian @ step + jax.scipy.linalg.cholesky(seen.covariance, lower=True) @ noise
        _, solved = normal_log_density(residual - drawn, total)
        step = step + variance * (jacobian.T @ solved)
        log_normaliser, _ = normal_log_density(residual, total)
        log_linear, _ = normal_log_density(residual - jacobian @ step, seen.covariance)
        log_ratio = log_normaliser - log_linear
    log_ratio = log_ratio - jnp.sum((shift**2 + 2 * shift * step) / (2 * variance))
    return unravel(mean + shift + step), log_ratio
