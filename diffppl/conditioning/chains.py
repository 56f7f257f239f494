"""The reverse chain whose posterior a weighted method draws, and how a step of it is guided.

A method that is exact or consistent is so for a *chain*: the model's own, or a better one that the
same denoiser gives. Weights are exact for either; what differs is how near the chain's x_0 comes to
the distribution that the network was fit to.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import linalg, samplers
from ..processes import GaussianDiffusion
from ..samplers.matched_step import MatchedStep, matched_final_step, matched_step
from .kernels import GuidedKernel, LastKernel
from .moments import Observations
from .program import Values
from .target import Level, Target
from .twists import AbstractTwist, Twisted
from .twists.base import flat_like, tweedie_factor
from .twists.normal import MAX_DENSE, log_density, rounding_variance

_MAX_SHARE = 0.98
"""Of the observations' covariance that one step may explain. What is left must be positive definite
in float32: its condition is then at most 50."""


class Particle(NamedTuple):
    """Every diffusion site at its time, the twist there, and the latents."""

    x: Values
    twisted: Twisted
    latents: Float[Array, " p"]


class AbstractChain(eqx.Module):
    """A reverse chain p, and a guided kernel q for each of its steps; for one particle.

    To add one, subclass this, mark it `typing.final`, and add a row to the tests' registry.
    """

    @abc.abstractmethod
    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Refuse what the chain cannot do; abstract values only."""

    @abc.abstractmethod
    def sampler(self) -> samplers.AbstractSampler:
        """The chain without observations."""

    @abc.abstractmethod
    def num_denoiser_calls(self) -> int:
        """Of a step, beside those of the twist."""

    @abc.abstractmethod
    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_{t-1} of the running stage from q; also log p(x_{t-1} | x_t) - log q."""

    @abc.abstractmethod
    def last_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_0 of the running stage from x_1; also log p(x_0 | x_1) - log q."""


@final
class ModelChain(AbstractChain):
    """The model's own kernels, those whose ELBO `fit` maximised; for every kind of data."""

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """No program is refused."""

    def sampler(self) -> samplers.Ancestral:
        return samplers.Ancestral()

    def num_denoiser_calls(self) -> int:
        """None: the twist has made them."""
        return 0

    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        kernel = GuidedKernel(target, particle.x, particle.twisted, level)
        x = kernel.sample(key)
        return x, kernel.log_ratio(x)

    def last_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        kernel = LastKernel(target, particle.x, particle.twisted, stage, particle.latents)
        x_0 = kernel.sample(key)
        return x_0, kernel.log_ratio(x_0)


@final
class CovarianceMatched(AbstractChain):
    """The second-order chain of `diffppl.samplers.matched_step`, for real data.

    With x_{t-1} = mean + L z and z ~ N(0, I), Cov[x_0, z given x_t] is known to first order, so z
    is drawn jointly conditioned on the observations, in as many dimensions as there are of them:

        z = u + e + G' S^{-1} (r - G (u + e) - e'),  e ~ N(0, I),  e' ~ N(0, S - G G')
        log p - log q = log N(z; 0, I) - log N(z; u, I) - log N(r - G z; 0, S - G G')
                        + log N(r - G u; 0, S)

    where r ~ N(0, S) is the residual under the twist, G = A Cov[x_0, z], and u moves along
    the twist's gradient where it does not take the observations apart. No determinant has more
    rows than there are observations, and any G leaves the weights right.

    Costs one Jacobian-vector product more than `ModelChain`, and one vector-Jacobian product for
    each number observed.
    """

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Real data, and a twist that has a gradient."""
        for name in target.sites(discrete=True):
            raise ValueError(
                f"chain=CovarianceMatched() is for real data, but site {name!r} has "
                f"{type(target.models[name].process).__name__}; use chain=ModelChain()."
            )
        if (observed := target.num_observed()) > MAX_DENSE:
            raise ValueError(
                f"chain=CovarianceMatched() conditions on at most {MAX_DENSE} numbers, and the "
                f"program observes {observed}; use chain=ModelChain()."
            )

    def sampler(self) -> samplers.CovarianceMatched:
        return samplers.CovarianceMatched()

    def num_denoiser_calls(self) -> int:
        """One, with its Jacobian-vector product."""
        return 1

    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        linear = particle.twisted.linear
        assert linear is not None
        names = target.sites(level.stage)
        running = {name: particle.x[name] for name in names}
        x_t, unravel = ravel_pytree(running)
        step = _steps(target, running, lambda process: matched_step(process, level.t))
        denoised = _denoiser(target, particle, unravel, level)
        mean, push, pull_back = _linearised(denoised, x_t)

        factor = flat_like(tweedie_factor(target, level, names), running)
        along = step.x_0 * factor * linear.score / step.scale
        u = along - step.shrink * pull_back(along)
        rows = step.reach * linear.rows
        rows = rows - step.shrink * jax.vmap(pull_back)(rows)
        total = linalg.cholesky(linear.covariance)
        residual, white_rows = _whitened(total, linear.residual, rows)
        share = jnp.sqrt(_share(white_rows))
        rows, white_rows = share * rows, share * white_rows
        rest = linalg.cholesky(linear.covariance - rows @ rows.T)
        z, log_ratio = _conditioned(key, u, residual, white_rows, total, rest)
        if linear.residual.size:
            left = linalg.solve_triangular(rest, linear.residual - rows @ z)
            log_ratio -= log_density(left, rest)
        x = step.x_0 * mean + step.x_t * x_t + step.scale * (z + step.grow * push(z))
        return unravel(x), log_ratio

    def last_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        names, is_last = target.sites(stage), stage == target.structure.num_stages - 1
        running = {name: particle.x[name] for name in names}
        x_1, unravel = ravel_pytree(running)
        step = _steps(target, running, matched_final_step)
        denoised = _denoiser(target, particle, unravel, Level(stage, 1))
        mean, push, pull_back = _linearised(denoised, x_1)

        def observe(flat: Array, *, noiseless: tuple[str, ...]) -> Observations:
            # Before the last stage only the known entries of this one are conditioned on.
            seen = target.observations(
                particle.x | unravel(flat), particle.latents, noiseless=noiseless
            )
            return (
                seen if is_last else seen.last(target.without_effect(names).size * bool(noiseless))
            )

        def transposed(vector: Array) -> Array:
            """L' times a vector."""
            scaled = step.scale * vector
            return scaled + step.grow * pull_back(scaled)

        u = transposed(jax.grad(lambda flat: observe(flat, noiseless=()).log_rest)(mean))
        seen = observe(mean, noiseless=names)
        jacobian = jax.jacrev(lambda flat: observe(flat, noiseless=names).mean)(mean)
        rows = jax.vmap(transposed)(jacobian)
        # Known entries have no noise of their own: the chain's last step must reach them.
        noisy = observe(mean, noiseless=())
        first = slice(noisy.value.size)
        noise = noisy.covariance.as_matrix() + rounding_variance(rows @ rows.T)[first, first]
        without = target.without_effect(names)
        error = jax.scipy.linalg.block_diag(noise, jnp.diag(jnp.where(without, 1.0, 0.0)))
        residual, rest = seen.value - seen.mean, _root(error)
        total = linalg.cholesky(rows @ rows.T + error)
        z, log_ratio = _conditioned(key, u, *_whitened(total, residual, rows), total, rest)
        log_ratio += 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(without)
        if noisy.value.size:
            rest = rest[first, first]
            left = linalg.solve_triangular(rest, (residual - rows @ z)[first])
            log_ratio -= log_density(left, rest)
        x_0 = unravel(mean + step.scale * (z + step.grow * push(z)))
        return target.clamp(x_0), log_ratio


def _steps(
    target: Target, like: Values, make: Callable[[GaussianDiffusion], MatchedStep]
) -> MatchedStep:
    """The numbers of a step for every coordinate of the running sites."""
    each = {name: make(target.models[name].process) for name in like}  # pyright: ignore
    names = MatchedStep._fields
    return MatchedStep(
        *(flat_like({site: getattr(s, name) for site, s in each.items()}, like) for name in names)
    )


def _denoiser(
    target: Target, particle: Particle, unravel: Callable[[Array], Values], level: Level
) -> Callable[[Array], Array]:
    """E[x_0 | x_t] of the running sites, flattened, as a function of their x_t."""

    def denoised(flat: Array) -> Array:
        estimates = target.estimate(particle.x | unravel(flat), level, particle.latents)
        return ravel_pytree({name: estimate.mean for name, estimate in estimates.items()})[0]

    return denoised


def _linearised(
    function: Callable[[Array], Array], at: Float[Array, " d"]
) -> tuple[Float[Array, " d"], Callable[[Array], Array], Callable[[Array], Array]]:
    """The value, and the products of the Jacobian and of its transpose with a vector."""
    value, push = jax.linearize(function, at)
    pull = jax.linear_transpose(push, at)
    return value, push, lambda vector: pull(vector)[0]


def _whitened(
    factor: Float[Array, "m m"], residual: Float[Array, " m"], rows: Float[Array, "m d"]
) -> tuple[Float[Array, " m"], Float[Array, "m d"]]:
    """L^{-1} residual and L^{-1} rows."""
    if not residual.size:
        return residual, rows
    white = linalg.solve_triangular(factor, jnp.column_stack([residual, rows]))
    return white[:, 0], white[:, 1:]


def _share(rows: Float[Array, "m d"]) -> Float[Array, ""]:
    """The factor, at most 1, by which whitened rows rows' stays below the identity."""
    if not rows.shape[0]:
        return jnp.ones(())
    largest = linalg.largest_eigenvalue(rows @ rows.T)
    return jnp.minimum(1.0, _MAX_SHARE / jnp.maximum(largest, 1e-30))


def _conditioned(
    key: Array,
    u: Float[Array, " d"],
    residual: Float[Array, " m"],
    rows: Float[Array, "m d"],
    total: Float[Array, "m m"],
    rest: Float[Array, "m m"],
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Draw z ~ N(u, I) given G z + N(0, rest rest') = r, by Matheron's rule.

    Also log N(z; 0, I) - log N(z; u, I) + log N(r - G u; 0, total total'), where total is the
    Cholesky factor of G G' + rest rest'. The residual r and the rows G come whitened by it.
    """
    e, error = jnp.split(jax.random.normal(key, (u.size + residual.size,), u.dtype), [u.size])
    log_normaliser = jnp.zeros(())
    if residual.size:
        ahead = residual - rows @ u
        log_normaliser = log_density(ahead, total)
        e = e + rows.T @ (ahead - rows @ e - linalg.solve_triangular(total, rest @ error))
    return u + e, log_normaliser - jnp.sum(u * (0.5 * u + e))


def _root(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """A square root of a covariance that may have rows of zeros."""
    variance = jnp.diagonal(covariance)
    empty = jnp.diag(jnp.where(variance > 0, 0.0, 1.0))
    return linalg.cholesky(covariance + empty) * (variance > 0)[:, None]
