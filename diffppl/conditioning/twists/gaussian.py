"""What twists on real data share: normal densities, and their steps."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ..observations import Observations
from ..program import Values
from ..target import Target
from .base import AbstractTwist, Estimates, Twisted, guided_step

MOST_DENSE = 32
"""Observed numbers up to which their covariance is a matrix; beyond, it is only multiplied by."""

_MOST_ITERATIONS = 30
_TOLERANCE = 1e-5  # of the residual, relative to the vector


class AbstractGaussianTwist(AbstractTwist):
    """A twist on real data: subclasses look ahead, and all move and finish in the same way."""

    @abc.abstractmethod
    def takes_jacobian(self, target: Target) -> bool:
        """Whether `look` takes the denoiser's Jacobian as a matrix; on shapes alone."""

    def propose(
        self,
        key: Array,
        target: Target,
        x_t: Values,
        twisted: Twisted,
        t: Array,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.propose`."""
        return guided_step(key, target, x_t, twisted, t, given)

    def finish(
        self,
        key: Array,
        target: Target,
        x_1: Values,
        twisted: Twisted,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.finish`."""
        return edge_given_observations(key, target, x_1, twisted.estimates, latents, given)


def rounding_slack(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """A variance that keeps `covariance` plus a tiny noise from being singular to rounding.

    Observations that say the same thing nearly without noise would otherwise give any number. Part
    of a proposal or of a twist, it changes no target.
    """
    largest = jnp.max(jnp.diagonal(covariance), initial=0.0)
    return 100 * jnp.finfo(covariance.dtype).eps * largest * jnp.eye(len(covariance))


def normal_log_density(
    residual: Float[Array, " m"], covariance: Float[Array, "m m"]
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """log N(residual; 0, covariance) in nats, and covariance^{-1} residual."""
    return log_density_and_solution(residual, factorised(covariance))


def factorised(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The lower Cholesky factor, to be used more than once."""
    return jax.scipy.linalg.cholesky(covariance, lower=True)


def log_density_and_solution(
    residual: Float[Array, " m"], factor: Float[Array, "m m"]
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """`normal_log_density` of a covariance that is already factorised."""
    solved = jax.scipy.linalg.cho_solve((factor, True), residual)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    constant = residual.size * jnp.log(2 * jnp.pi)
    return -0.5 * (residual @ solved + log_det + constant), solved


def conjugate_gradients(
    times: Callable[[Array], Array], vector: Float[Array, " m"]
) -> Float[Array, " m"]:
    """The solution of times(s) = vector, for a symmetric positive operator, nearly.

    At most 30 iterations: one cut short still points towards the observations. Nothing depends on
    the scale of the operator (Lineax's own CG takes small ones, as of sharp observations, for
    singular, and answers NaN).
    """

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, _, _, left, num = state
        return (left > _TOLERANCE**2 * (vector @ vector)) & (num < _MOST_ITERATIONS)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        solution, residual, direction, left, num = state
        applied = times(direction)
        curvature = direction @ applied
        # Rounding can use up a direction, or turn it: then what was found so far stays.
        useful = curvature > 0
        step = jnp.where(useful, left / jnp.where(useful, curvature, 1.0), 0.0)
        solution, residual = solution + step * direction, residual - step * applied
        now = residual @ residual
        num = jnp.where(useful, num + 1, _MOST_ITERATIONS)
        return solution, residual, residual + now / left * direction, now, num

    start = (jnp.zeros_like(vector), vector, vector, vector @ vector, jnp.asarray(0))
    return jax.lax.while_loop(unfinished, iterate, start)[0]


def edge_given_observations(
    key: Array,
    target: Target,
    x_1: Values,
    estimates: Estimates,
    latents: Array,
    given: Values | None = None,
) -> tuple[Values, Float[Array, ""]]:
    """Draw x_0 from the edge kernel conditioned on the observations, linearised at its mean.

    The kernel p = N(m, V) is first moved along the gradient of the sites that have no moments,
    to q' = N(m + c, V), then conditioned on the linearised observed sites g: q = q' g / Z. With
    linear Gaussian observations q is the exact conditional and the final weights are constant.
    Where there are many observations q' is only moved, not narrowed. Entries that are known
    without noise are set before.

    Returns:
        x_0, and log p(x_0) - log q(x_0), with the density of the known entries under p.
    """
    edges = {
        name: model.process.edge(x_1[name], estimates[name])
        for name, model in target.models().items()
    }
    mean, unravel = ravel_pytree({name: edge.mean for name, edge in edges.items()})
    variance, _ = ravel_pytree(
        {name: jnp.broadcast_to(edge.variance, edge.mean.shape) for name, edge in edges.items()}
    )
    mask, value = _known(target)
    log_known = -0.5 * ((value - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    log_ratio = jnp.sum(jnp.where(mask, log_known, 0.0))
    mean = jnp.where(mask, value, mean)
    free = jnp.where(mask, 0.0, variance)

    def observe(flat: Array) -> Observations:
        return target.observations(unravel(flat), latents)

    seen = observe(mean)
    shift = free * jax.grad(lambda flat: observe(flat).log_rest)(mean)
    key_x, key_y = jax.random.split(key)
    noise = jnp.sqrt(free) * jax.random.normal(key_x, mean.shape, mean.dtype)
    if 0 < seen.value.size <= MOST_DENSE:
        jacobian = jax.jacrev(lambda flat: observe(flat).mean)(mean)
        spread = (jacobian * free) @ jacobian.T
        covariance = seen.covariance.as_matrix() + rounding_slack(spread)
        noise_factor, factor = factorised(covariance), factorised(spread + covariance)
        residual = seen.value - seen.mean - jacobian @ shift
        # Matheron's rule: correct a joint draw of (x, y) by the residual of its own y.
        error = jax.random.normal(key_y, residual.shape, mean.dtype)
        drawn = jacobian @ noise + noise_factor @ error
        _, solved = log_density_and_solution(residual - drawn, factor)
        step = noise + free * (jacobian.T @ solved)
        if given is not None:
            step = ravel_pytree(given)[0] - mean - shift
        log_normaliser, _ = log_density_and_solution(residual, factor)
        log_linear, _ = log_density_and_solution(residual - jacobian @ step, noise_factor)
        log_ratio = log_ratio + log_normaliser - log_linear
    else:
        if seen.value.size:
            _, push = jax.linearize(lambda flat: observe(flat).mean, mean)
            pull = jax.linear_transpose(push, mean)
            solved = conjugate_gradients(
                lambda v: push(free * pull(v)[0]) + seen.covariance.mv(v),
                seen.value - seen.mean - push(shift),
            )
            shift = shift + free * pull(solved)[0]
        step = noise if given is None else ravel_pytree(given)[0] - mean - shift
    log_ratio = log_ratio - jnp.sum((shift**2 + 2 * shift * step) / (2 * variance))
    return unravel(mean + shift + step), log_ratio


def _known(target: Target) -> tuple[Bool[Array, " d"], Float[Array, " d"]]:
    """Which coordinates of all sites are known, and what they are, flattened."""
    known = target.known()
    mask, _ = ravel_pytree({name: mask for name, (mask, _) in known.items()})
    value, _ = ravel_pytree({name: value for name, (_, value) in known.items()})
    return mask, value


def draw_given_observations(
    key: Array, target: Target, mean: Values, variance: Array, latents: Array
) -> Values:
    """Draw x_0 ~ N(mean, variance I) given the observations, linearised at the mean.

    By conjugate gradients, for any number of observations, and without the density of the draw.
    Sites that have no moments move it along their gradient, no coordinate further than its
    standard deviation: a step of the whole gradient would overshoot what is seen more sharply.
    """
    flat, unravel = ravel_pytree(mean)
    mask, value = _known(target)
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
            error = jnp.linalg.cholesky(seen.covariance.as_matrix()) @ error
        solved = conjugate_gradients(
            lambda v: push(free * pull(v)[0]) + seen.covariance.mv(v),
            seen.value - seen.mean - push(step) - error,
        )
        step = step + free * pull(solved)[0]
    return unravel(flat + step)
