"""Normal distributions over x_0 conditioned on the observations, which are linearised at the mean.

A draw is made by Matheron's rule: a joint draw of x_0 and of the observations is corrected by the
residual of its own observations, so that no square root of a conditional covariance is needed.
"""

import math
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .. import linalg
from .moments import Observations
from .program import Values
from .target import Target
from .twists.normal import MAX_DENSE, conjugate_gradients, log_density, rounding_variance


@final
class ConditionedNormal(eqx.Module):
    """p = N(m, V) of the real sites of a stage, conditioned on the observations.

    It is first moved along the gradient of the sites that have no moments, to N(m + c, V), then
    conditioned on the linearised observed sites. With linear Gaussian observations it is the exact
    conditional and the weights of a last step are constant. Where there are many observations it is
    only moved, not narrowed. Known entries are set before.

    Args:
        target: the target.
        kernels: normal distributions by site.
        others: x_0 of all other sites.
        latents: u.
        observe: whether to condition on more than the known entries.
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
        kernels: dict[str, Any],
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
        known = {name: entry for name, entry in target.known().items() if name in kernels}
        mask, _ = ravel_pytree({name: mask for name, (mask, _) in known.items()})
        value, _ = ravel_pytree({name: value for name, (_, value) in known.items()})
        log_known = -0.5 * ((value - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
        self.log_known = jnp.sum(jnp.where(mask, log_known, 0.0))
        self.mean, self.variance, self.known = jnp.where(mask, value, mean), variance, mask
        self.shapes = {name: x.shape for name, x in means.items()}
        free = jnp.where(mask, 0.0, variance)
        self.shift, self.linear = jnp.zeros_like(mean), None
        if observe:

            def observations(flat: Array) -> Observations:
                return target.observations(others | unravel(flat), latents)

            self.shift = free * jax.grad(lambda flat: observations(flat).log_rest)(self.mean)
            self._condition(observations, free)

    def _condition(self, observations: Callable[[Array], Observations], free: Array) -> None:
        seen = observations(self.mean)
        if 0 < seen.value.size <= MAX_DENSE:
            jacobian = jax.jacrev(lambda flat: observations(flat).mean)(self.mean)
            residual = seen.value - seen.mean - jacobian @ self.shift
            self.linear = _Linear(jacobian, residual, seen.covariance.as_matrix(), free)
        elif seen.value.size:
            _, push = jax.linearize(lambda flat: observations(flat).mean, self.mean)
            pull = jax.linear_transpose(push, self.mean)
            solved = conjugate_gradients(
                lambda v: push(free * pull(v)[0]) + seen.covariance.mv(v),
                seen.value - seen.mean - push(self.shift),
            )
            self.shift = self.shift + free * pull(solved)[0]

    def sample(self, key: Array) -> Values:
        """A draw by site, known entries included."""
        key_x, key_y = jax.random.split(key)
        free = jnp.where(self.known, 0.0, self.variance)
        step = jnp.sqrt(free) * jax.random.normal(key_x, self.mean.shape, self.mean.dtype)
        if self.linear is not None:
            step = step + self.linear.correction(key_y, step, free)
        return self._unravel(self.mean + self.shift + step)

    def log_ratio(self, x_0: Values) -> Float[Array, ""]:
        """log N(x_0; m, V) - log q(x_0), with the density of the known entries under N(m, V)."""
        flat, _ = ravel_pytree({name: x_0[name] for name in self.shapes})
        step = flat - self.mean - self.shift
        moved = jnp.sum((self.shift**2 + 2 * self.shift * step) / (2 * self.variance))
        narrowed = jnp.zeros(()) if self.linear is None else self.linear.log_ratio(step)
        return self.log_known + narrowed - moved

    def _unravel(self, flat: Float[Array, " d"]) -> Values:
        values, start = {}, 0
        for name, shape in sorted(self.shapes.items()):
            size = math.prod(shape)
            values[name] = flat[start : start + size].reshape(shape)
            start += size
        return values


@final
class _Linear(eqx.Module):
    """Observations residual ~ N(jacobian step, noise) of a step ~ N(0, free)."""

    jacobian: Float[Array, "m d"]
    residual: Float[Array, " m"]
    noise_factor: Float[Array, "m m"]
    factor: Float[Array, "m m"]

    def __init__(self, jacobian: Array, residual: Array, noise: Array, free: Array) -> None:
        spread = (jacobian * free) @ jacobian.T
        noise = noise + rounding_variance(spread)
        self.jacobian, self.residual = jacobian, residual
        self.noise_factor, self.factor = linalg.cholesky(noise), linalg.cholesky(spread + noise)

    def correction(self, key: Array, step: Array, free: Array) -> Float[Array, " d"]:
        """What makes a free step a conditioned one, by Matheron's rule."""
        noise = self.noise_factor @ jax.random.normal(key, self.residual.shape, step.dtype)
        drawn = self.jacobian @ step + noise
        solved = linalg.cholesky_solve(self.factor, self.residual - drawn)
        return free * (self.jacobian.T @ solved)

    def log_ratio(self, step: Float[Array, " d"]) -> Float[Array, ""]:
        """log of the normaliser less that of the likelihood of a step."""
        left = self.residual - self.jacobian @ step
        white = linalg.solve_triangular(self.factor, self.residual)
        white_left = linalg.solve_triangular(self.noise_factor, left)
        return log_density(white, self.factor) - log_density(white_left, self.noise_factor)


def draw_given_observations(
    key: Array, target: Target, mean: Values, variance: Array, latents: Array
) -> Values:
    """Draw x_0 ~ N(mean, variance I) given the observations, linearised at the mean.

    By conjugate gradients, for any number of observations, and without the density of the draw.
    Sites that have no moments move it along their gradient, no coordinate further than its
    standard deviation: a step of the whole gradient would overshoot sharp ones.
    """
    flat, unravel = ravel_pytree(mean)
    known = target.known()
    mask, _ = ravel_pytree({name: mask for name, (mask, _) in known.items()})
    value, _ = ravel_pytree({name: value for name, (_, value) in known.items()})
    flat = jnp.where(mask, value, flat)
    free = jnp.where(mask, 0.0, variance)

    def observe(flat: Array) -> Observations:
        return target.observations(unravel(flat), latents)

    seen = observe(flat)
    key_x, key_y = jax.random.split(key)
    scale = jnp.sqrt(free)
    pull_of_rest = jnp.tanh(scale * jax.grad(lambda flat: observe(flat).log_rest)(flat))
    step = scale * (jax.random.normal(key_x, flat.shape, flat.dtype) + pull_of_rest)
    if seen.value.size:
        _, push = jax.linearize(lambda flat: observe(flat).mean, flat)
        pull = jax.linear_transpose(push, flat)
        error = jax.random.normal(key_y, seen.value.shape, flat.dtype)
        if isinstance(seen.covariance, lx.DiagonalLinearOperator):
            error = jnp.sqrt(lx.diagonal(seen.covariance)) * error
        else:
            error = linalg.cholesky(seen.covariance.as_matrix()) @ error
        solved = conjugate_gradients(
            lambda v: push(free * pull(v)[0]) + seen.covariance.mv(v),
            seen.value - seen.mean - push(step) - error,
        )
        step = step + free * pull(solved)[0]
    return unravel(flat + step)
