"""Normal distributions over x_0 conditioned on the observations, which are linearised at the mean.

Draws use Matheron's rule: x_0 and the observations are drawn jointly, and x_0 is corrected by the
residual of the drawn observations. This requires no square root of a conditional covariance.
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution

from .. import linalg
from .moments import Observations
from .program import Values
from .target import Target
from .twists.normal import (
    MAX_DENSE,
    LinearObservations,
    conjugate_gradients,
    log_density,
    rounding_variance,
    square_root,
    whitened,
)


@final
class ConditionedNormal(eqx.Module):
    """p = N(m, V) of the real sites of a stage, conditioned on the observations.

    The mean is shifted along the gradient of the sites without moments, to N(m + c, V), which is
    then conditioned on the linearised observed sites. With linear Gaussian observations the result
    is the exact conditional, and the weights of a final step are constant. With more than
    `MAX_DENSE` observations only the mean is conditioned, not V. Noiseless entries are set first.

    Args:
        target: the target.
        kernels: normal distributions by site.
        others: x_0 of all other sites.
        latents: u.
        observe: whether to condition on observations other than the noiseless entries.
    """

    mean: Float[Array, " d"]
    variance: Float[Array, " d"]
    known: Bool[Array, " d"]
    log_known: Float[Array, ""]
    shift: Float[Array, " d"]
    linear: "_Linear | None"
    shapes: dict[str, tuple[int, ...]] = eqx.field(static=True)

    def __init__(
        self,
        target: Target,
        kernels: dict[str, Distribution],
        others: Values,
        latents: Array,
        *,
        observe: bool,
    ) -> None:
        means = {name: kernel.mean for name, kernel in kernels.items()}
        mean, unravel = ravel_pytree(means)
        variance, _ = ravel_pytree(
            {name: jnp.broadcast_to(k.variance, means[name].shape) for name, k in kernels.items()}
        )
        known = {
            name: entry for name, entry in target.observed_entries().items() if name in kernels
        }
        mask, _ = ravel_pytree({name: mask for name, (mask, _) in known.items()})
        value, _ = ravel_pytree({name: value for name, (_, value) in known.items()})
        log_known = -0.5 * ((value - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
        self.log_known = jnp.sum(jnp.where(mask, log_known, 0.0))
        self.mean, self.variance, self.known = jnp.where(mask, value, mean), variance, mask
        self.shapes = {name: x.shape for name, x in means.items()}
        free = jnp.where(mask, 0.0, variance)  # noiseless entries do not vary
        self.shift, self.linear = jnp.zeros_like(mean), None
        if observe:

            def observations(flat: Array) -> Observations:
                return target.observations(others | unravel(flat), latents)

            self._condition(LinearObservations(observations, self.mean), free)

    def _condition(self, linear: LinearObservations, free: Array) -> None:
        # c = V dlog r/dx_0, for the factors of r without moments.
        self.shift = free * linear.gradient
        residual, noise = linear.residual, linear.at.covariance
        if 0 < residual.size <= MAX_DENSE:
            jacobian = linear.jacobian()
            self.linear = _Linear(jacobian, residual - jacobian @ self.shift, noise, free)
        elif residual.size:
            # c + V H' (H V H' + R)^{-1} (y - h(m) - H c), by products with H = dh/dx_0.
            solved = conjugate_gradients(
                lambda v: linear.push(free * linear.pull(v)) + noise.mv(v),
                residual - linear.push(self.shift),
            )
            self.shift = self.shift + free * linear.pull(solved)

    def sample(self, key: Array) -> Values:
        """Draw every site, noiseless entries included."""
        key_x, key_y = jax.random.split(key)
        free = jnp.where(self.known, 0.0, self.variance)
        step = jnp.sqrt(free) * jax.random.normal(key_x, self.mean.shape, self.mean.dtype)
        if self.linear is not None:
            step = step + self.linear.correction(key_y, step, free)
        return self._unravel(self.mean + self.shift + step)

    def log_ratio(self, x_0: Values) -> Float[Array, ""]:
        """Return log N(x_0; m, V) - log q(x_0), where N(m, V) includes the noiseless entries."""
        flat, _ = ravel_pytree({name: x_0[name] for name in self.shapes})
        step = flat - self.mean - self.shift
        # log N(step + c; 0, V) = log N(step; 0, V) - (c^2 + 2 c step) / (2 V).
        shifted = jnp.sum((self.shift**2 + 2 * self.shift * step) / (2 * self.variance))
        conditioned = jnp.zeros(()) if self.linear is None else self.linear.log_ratio(step)
        return self.log_known + conditioned - shifted

    def _unravel(self, flat: Float[Array, " d"]) -> Values:
        values, start = {}, 0
        for name, shape in sorted(self.shapes.items()):
            size = math.prod(shape)
            values[name] = flat[start : start + size].reshape(shape)
            start += size
        return values


@final
class _Linear(eqx.Module):
    """Linear observations: residual ~ N(jacobian step, noise), with step ~ N(0, diag(free))."""

    jacobian: Float[Array, "m d"]
    residual: Float[Array, " m"]
    noise_root: lx.AbstractLinearOperator
    factor: Float[Array, "m m"]

    def __init__(
        self, jacobian: Array, residual: Array, noise: lx.AbstractLinearOperator, free: Array
    ) -> None:
        signal = (jacobian * free) @ jacobian.T
        rounding = rounding_variance(signal)  # redundant observations may be nearly singular
        self.jacobian, self.residual = jacobian, residual
        self.noise_root = square_root(noise, rounding)
        total = signal + noise.as_matrix() + rounding * jnp.eye(len(signal))
        self.factor = linalg.cholesky(total)

    def correction(self, key: Array, step: Array, free: Array) -> Float[Array, " d"]:
        """Return the correction that conditions a draw of the step, by Matheron's rule."""
        noise = self.noise_root.mv(jax.random.normal(key, self.residual.shape, step.dtype))
        simulated = self.jacobian @ step + noise
        solved = linalg.cholesky_solve(self.factor, self.residual - simulated)
        return free * (self.jacobian.T @ solved)

    def log_ratio(self, step: Float[Array, " d"]) -> Float[Array, ""]:
        """Return the log marginal density of the residual less its log-density at a step."""
        error = self.residual - self.jacobian @ step
        white = linalg.solve_triangular(self.factor, self.residual)
        log_error = log_density(whitened(self.noise_root, error), lx.diagonal(self.noise_root))
        return log_density(white, jnp.diagonal(self.factor)) - log_error


def draw_conditioned(
    key: Array, target: Target, mean: Values, variance: Array, latents: Array
) -> Values:
    """Draw x_0 ~ N(mean, diag(variance)), conditioned on observations linearised at the mean.

    Uses conjugate gradients, for any number of observations; the density of the draw is not
    computed. Sites without moments shift it along their gradient, each coordinate by at most its
    standard deviation: a full gradient step would overshoot where they are sharp.
    """
    flat, unravel = ravel_pytree(mean)
    known = target.observed_entries()
    mask, _ = ravel_pytree({name: mask for name, (mask, _) in known.items()})
    value, _ = ravel_pytree({name: value for name, (_, value) in known.items()})
    flat = jnp.where(mask, value, flat)
    free = jnp.where(mask, 0.0, variance)

    def observe(flat: Array) -> Observations:
        return target.observations(unravel(flat), latents)

    linear = LinearObservations(observe, flat)
    key_x, key_y = jax.random.split(key)
    scale = jnp.sqrt(free)
    shift = jnp.tanh(scale * linear.gradient)  # in (-1, 1)
    step = scale * (jax.random.normal(key_x, flat.shape, flat.dtype) + shift)
    residual, noise = linear.residual, linear.at.covariance
    if residual.size:
        # Matheron's rule: correct the step by the residual of observations drawn with it.
        error = square_root(noise).mv(jax.random.normal(key_y, residual.shape, flat.dtype))
        solved = conjugate_gradients(
            lambda v: linear.push(free * linear.pull(v)) + noise.mv(v),
            residual - linear.push(step) - error,
        )
        step = step + free * linear.pull(solved)
    return unravel(flat + step)
