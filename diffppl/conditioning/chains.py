"""The reverse chain whose posterior a weighted method draws, and how a step of it is guided.

A method that is exact or consistent is so for a *chain*: the model's own, or a better one that the
same denoiser gives. Both are respected to the last bit of weight; what differs is how near the
chain's x_0 comes to the distribution that the network was fit to.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import samplers
from ..matched import MatchedStep, matched_edge, matched_step
from ..processes import GaussianDiffusion
from .observations import Observations
from .program import Values
from .target import Target
from .twists import AbstractTwist, Twisted
from .twists.base import flat_like, tweedie_factor
from .twists.gaussian import (
    MOST_DENSE,
    AbstractGaussianTwist,
    factorised,
    log_density_and_solution,
    normal_log_density,
    rounding_slack,
)

_LARGEST_SHARE = 0.98  # of the observations' covariance that one step may explain


class Particle(NamedTuple):
    """x_t, what a twist says of it, and the other latents."""

    x: Values
    twisted: Twisted
    latents: Float[Array, " p"]


class AbstractChain(eqx.Module):
    """A reverse chain p, and a guided kernel q for each of its steps; for one particle."""

    @abc.abstractmethod
    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Refuse what the chain cannot do; abstract values only."""

    @abc.abstractmethod
    def sampler(self) -> samplers.AbstractSampler:
        """The chain without observations."""

    @abc.abstractmethod
    def propose(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle, t: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_{t-1} from q; also log p(x_{t-1} given x_t) - log q."""

    @abc.abstractmethod
    def finish(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_0 from x_1; also log p(x_0 given x_1) - log q."""


@final
class ModelChain(AbstractChain):
    """The model's own kernels, those whose ELBO `fit` maximised; for every kind of data."""

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Everything goes."""

    def sampler(self) -> samplers.Ancestral:
        """See `AbstractChain.sampler`."""
        return samplers.Ancestral()

    def propose(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle, t: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractChain.propose`."""
        return twist.propose(key, target, particle.x, particle.twisted, t, particle.latents)

    def finish(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractChain.finish`."""
        return twist.finish(key, target, particle.x, particle.twisted, particle.latents)


@final
class CovarianceMatched(AbstractChain):
    """The second-order chain of `diffppl.matched`, for real data.

    With x_{t-1} = mean + L z and z ~ N(0, I), Cov[x_0, z given x_t] is known to first order, so z
    is drawn jointly conditioned on the observations, in as many dimensions as there are of them:

        z = u + e + G' S^{-1} (r - G (u + e) - e'),  e ~ N(0, I),  e' ~ N(0, S - G G')
        log p - log q = log N(z; 0, I) - log N(z; u, I) - log N(r - G z; 0, S - G G')
                        + log N(r - G u; 0, S)

    where r ~ N(0, S) is what the twist says of the residual, G = A Cov[x_0, z], and u moves along
    the twist's gradient where it does not take the observations apart. No determinant has more
    rows than there are observations, and any G leaves the weights right.

    Costs one Jacobian-vector product more than `ModelChain`, and one vector-Jacobian product for
    each number observed.
    """

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Real data, and a twist that has a gradient."""
        for name, model in target.models().items():
            if not isinstance(model.process, GaussianDiffusion):
                raise ValueError(  # noqa: TRY004 (the program is at fault, not a type)
                    f"chain=CovarianceMatched() is for real data, but site {name!r} has "
                    f"{type(model.process).__name__}; use chain=ModelChain()."
                )
        if not isinstance(twist, AbstractGaussianTwist):
            raise ValueError(  # noqa: TRY004 (a setting that does not suit, as above)
                f"chain=CovarianceMatched() needs a twist with a gradient, which "
                f"{type(twist).__name__}() has not; use chain=ModelChain()."
            )
        if (observed := target.num_observed()) > MOST_DENSE:
            raise ValueError(
                f"chain=CovarianceMatched() conditions on at most {MOST_DENSE} numbers, and the "
                f"program observes {observed}; use chain=ModelChain()."
            )

    def sampler(self) -> samplers.CovarianceMatched:
        """See `AbstractChain.sampler`."""
        return samplers.CovarianceMatched()

    def propose(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle, t: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractChain.propose`."""
        del twist
        linear = particle.twisted.linear
        assert linear is not None
        x_t, unravel = ravel_pytree(particle.x)
        step = _steps(target, particle.x, lambda process: matched_step(process, t))
        denoised = _denoiser(target, particle, unravel, t)
        _, pull_back = jax.vjp(denoised, x_t)

        factor = flat_like(tweedie_factor(target, t), particle.x)
        along = step.x_0 * factor * linear.score / step.scale
        u = along - step.shrink * pull_back(along)[0]
        rows = step.reach * linear.rows
        rows = rows - step.shrink * jax.vmap(lambda row: pull_back(row)[0])(rows)
        share = _share(linear.covariance, rows)
        rows = rows * jnp.sqrt(share)
        rest = linear.covariance - rows @ rows.T
        z, log_ratio = _conditioned(key, u, linear.residual, rows, linear.covariance, rest)

        mean, pushed = jax.jvp(denoised, (x_t,), (z,))
        x = step.x_0 * mean + step.x_t * x_t + step.scale * (z + step.grow * pushed)
        if linear.residual.size:
            log_ratio -= normal_log_density(linear.residual - rows @ z, rest)[0]
        return unravel(x), log_ratio

    def finish(
        self, key: Array, target: Target, twist: AbstractTwist, particle: Particle
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractChain.finish`."""
        del twist
        x_1, unravel = ravel_pytree(particle.x)
        step = _steps(target, particle.x, matched_edge)
        denoised = _denoiser(target, particle, unravel, 1)
        mean, pull_back = jax.vjp(denoised, x_1)

        def observe(flat: Array, *, exact: bool) -> Observations:
            return target.observations(unravel(flat), particle.latents, exact=exact)

        def transposed(vector: Array) -> Array:
            """L' times a vector."""
            scaled = step.scale * vector
            return scaled + step.grow * pull_back(scaled)[0]

        u = transposed(jax.grad(lambda flat: observe(flat, exact=False).log_rest)(mean))
        seen = observe(mean, exact=True)
        jacobian = jax.jacrev(lambda flat: observe(flat, exact=True).mean)(mean)
        rows = jax.vmap(transposed)(jacobian)
        # Known entries have no noise of their own: the chain's last step must reach them.
        noisy = observe(mean, exact=False)
        first = slice(noisy.value.size)
        noise = noisy.covariance.as_matrix() + rounding_slack(rows @ rows.T)[first, first]
        error = jnp.zeros((seen.value.size, seen.value.size)).at[first, first].set(noise)
        error = error + _hidden(target, seen.value.size)
        residual = seen.value - seen.mean
        total = rows @ rows.T + error
        z, log_ratio = _conditioned(key, u, residual, rows, total, error)
        if target.exact is not None:  # hidden observations say nothing
            log_ratio += 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(~target.exact.visible)
        if noisy.value.size:
            log_ratio -= normal_log_density((residual - rows @ z)[first], noise)[0]
        _, pushed = jax.jvp(denoised, (x_1,), (z,))
        x_0 = unravel(mean + step.scale * (z + step.grow * pushed))
        return target.pinned(x_0), log_ratio


def _steps(
    target: Target, like: Values, make: Callable[[GaussianDiffusion], MatchedStep]
) -> MatchedStep:
    """The numbers of a step for every coordinate of every site."""
    each = {name: make(model.process) for name, model in target.models().items()}  # pyright: ignore
    names = MatchedStep._fields
    return MatchedStep(
        *(flat_like({site: getattr(s, name) for site, s in each.items()}, like) for name in names)
    )


def _denoiser(
    target: Target, particle: Particle, unravel: Callable[[Array], Values], t: Array | int
) -> Callable[[Array], Array]:
    contexts = target.contexts(particle.latents)

    def denoised(flat: Array) -> Array:
        x = unravel(flat)
        return ravel_pytree(
            target.map_sites(lambda model, x, context: model.denoise(x, t, context), x, contexts)
        )[0]

    return denoised


def _share(covariance: Float[Array, "m m"], rows: Float[Array, "m d"]) -> Float[Array, ""]:
    """What must be taken off rows rows' for the covariance to be larger."""
    if not rows.shape[0]:
        return jnp.ones(())
    factor = jnp.linalg.cholesky(covariance)
    white = jax.scipy.linalg.solve_triangular(factor, rows, lower=True)
    largest = jnp.linalg.eigvalsh(white @ white.T)[-1]
    return jnp.minimum(1.0, _LARGEST_SHARE / jnp.maximum(largest, 1e-30))


def _conditioned(
    key: Array,
    u: Float[Array, " d"],
    residual: Float[Array, " m"],
    rows: Float[Array, "m d"],
    total: Float[Array, "m m"],
    rest: Float[Array, "m m"],
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Draw z ~ N(u, I) given rows z + N(0, rest) = residual, by Matheron's rule.

    Also log N(z; 0, I) - log N(z; u, I) + log N(residual - rows u; 0, total).
    """
    key_z, key_rest = jax.random.split(key)
    e = jax.random.normal(key_z, u.shape, u.dtype)
    log_normaliser = jnp.zeros(())
    if residual.size:
        error = jax.random.normal(key_rest, residual.shape, u.dtype)
        drawn = rows @ e + _root(rest) @ error
        factor, ahead = factorised(total), residual - rows @ u
        log_normaliser, _ = log_density_and_solution(ahead, factor)
        _, solved = log_density_and_solution(ahead - drawn, factor)
        e = e + rows.T @ solved
    return u + e, log_normaliser - jnp.sum(u * (0.5 * u + e))


def _root(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """A square root of a covariance that may have rows of zeros."""
    variance = jnp.diagonal(covariance)
    empty = jnp.diag(jnp.where(variance > 0, 0.0, 1.0))
    return jnp.linalg.cholesky(covariance + empty) * (variance > 0)[:, None]


def _hidden(target: Target, size: int) -> Float[Array, "m m"]:
    """Unit variance for the exact observations that a mask hides; they stand last."""
    if target.exact is None:
        return jnp.zeros((size, size))
    visible = target.exact.visible
    ones = jnp.zeros(size).at[size - visible.size :].set(jnp.where(visible, 0.0, 1.0))
    return jnp.diag(ones)
