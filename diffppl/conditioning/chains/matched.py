"""The covariance-matched reverse chain."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ... import linalg, samplers
from ...processes import GaussianDiffusion
from ...processes.support import check_real
from ...samplers.matched_step import MatchedStep, matched_final_step, matched_step
from ..moments import Observations
from ..program import Values
from ..target import Level, Target
from ..twists import AbstractTwist, PooledMomentMatching, Twisted
from ..twists.base import Linearised, flat_like, tweedie_factor
from ..twists.normal import (
    MAX_DENSE,
    LinearObservations,
    log_density,
    rounding_variance,
    square_root,
    whitened,
)
from .base import AbstractChain, Particle
from .model import ModelChain
from .proposal import MAX_EXPLAINED, PooledProposal


@final
class CovarianceMatched(AbstractChain):
    """The second-order chain of `diffppl.samplers.matched_step`, for real data.

    With x_{t-1} = mean + L z and z ~ N(0, I), Cov[x_0, z | x_t] is known to first order, so z is
    drawn jointly, conditioned on the observations, by linear solves in their dimension:

        z = u + e + G' S^{-1} (r - G (u + e) - e'),  e ~ N(0, I),  e' ~ N(0, S - G G')
        log p - log q = log N(z; 0, I) - log N(z; u, I) - log N(r - G z; 0, S - G G')
                        + log N(r - G u; 0, S)

    where r ~ N(0, S) is the residual under the twist, A the Jacobian of the observed means,
    G = A Cov[x_0, z | x_t] the cross-covariance of r and z, and u the shift along the gradient of
    the factors of the twist that have no residual. Determinants are of the size of r, and the
    weights are exact for any G.

    A step costs one Jacobian-vector product more than that of `ModelChain`, and one vector-Jacobian
    product for each observed number. With `PooledMomentMatching()` the distribution of e has
    S and G of the pool, and u is shifted along the whole score, at one product.
    """

    pooled: PooledMomentMatching | None = eqx.field(default=None, repr=False)
    proposal: PooledProposal | None = eqx.field(default=None, repr=False)

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Require real data, and at most `MAX_DENSE` observed numbers unless they are pooled."""
        what, remedy = "chain=CovarianceMatched()", "; use chain=ModelChain()"
        for name, model in target.models.items():
            check_real(what, model.process, remedy, subject=f"site {name!r} has")
        is_pooled = isinstance(twist, PooledMomentMatching)
        if (observed := target.num_observed()) > MAX_DENSE and not is_pooled:
            raise ValueError(
                f"chain=CovarianceMatched() conditions on at most {MAX_DENSE} numbers with this "
                f"twist, and the program observes {observed}; use chain=ModelChain(), or "
                "twist=PooledMomentMatching()."
            )

    def sampler(self) -> samplers.CovarianceMatched:
        return samplers.CovarianceMatched()

    def num_denoiser_calls(self) -> int:
        return 1  # linearised together with its value

    def select(self, twisted: Twisted) -> Twisted:
        return Twisted(twisted.log_value, {}, {}, {}, twisted.linear)

    def prepared(self, target: Target, twist: AbstractTwist, level: Level) -> "CovarianceMatched":
        if not isinstance(twist, PooledMomentMatching):
            return self
        assert twist.pool is not None, "adapt the twist first"
        names = target.sites(level.stage)
        like = {name: jnp.zeros(target.structure.shapes[name]) for name in names}
        if is_final := isinstance(level.t, int) and level.t == 1:
            step = _coefficients(target, like, matched_final_step)
            cross = step.scale * (twist.pool.jacobian + step.grow * twist.pool.first)
        else:
            step = _coefficients(target, like, lambda process: matched_step(process, level.t))
            cross = step.cross_scale * (twist.pool.first - step.shrink * twist.pool.second)
        proposal = PooledProposal(twist.pool.values, cross)
        return CovarianceMatched(twist if is_final else None, proposal)

    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        linear = particle.twisted.linear
        assert linear is not None
        names = target.sites(level.stage)
        running = {name: particle.x[name] for name in names}
        x_t, unravel = ravel_pytree(running)
        step = _coefficients(target, running, lambda process: matched_step(process, level.t))
        denoiser = _denoiser(target, particle, unravel, level)
        mean, jvp, vjp = _linearised(denoiser, x_t)

        # L u = b C_t dlog psi/dx_0, where C_t = Cov[x_0 | x_t] is Tweedie's factor times dm/dx_t.
        tweedie = flat_like(tweedie_factor(target, level, names), running)
        shift = step.x_0 * tweedie * linear.score / step.scale
        u = shift - step.shrink * vjp(shift)
        if self.proposal is not None:
            z, log_ratio = self.proposal.draw(key, u, linear.noise_scale)
        else:
            z, log_ratio = _draw_with(key, u, linear, step, vjp)
        x = step.x_0 * mean + step.x_t * x_t + step.scale * (z + step.grow * jvp(z))
        return unravel(x), log_ratio

    def final_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        names, is_last = target.sites(stage), stage == target.structure.num_stages - 1
        if self.proposal is not None and target.has_noiseless:
            # Clamped entries require the density of the rest, which a diagonal kernel has.
            estimates = target.estimate(particle.x, Level(stage, 1), particle.latents)
            twisted = Twisted(particle.twisted.log_value, estimates, {}, {}, None)
            return ModelChain().final_step(key, target, particle._replace(twisted=twisted), stage)
        running = {name: particle.x[name] for name in names}
        x_1, unravel = ravel_pytree(running)
        step = _coefficients(target, running, matched_final_step)
        denoiser = _denoiser(target, particle, unravel, Level(stage, 1))
        mean, jvp, vjp = _linearised(denoiser, x_1)
        if self.proposal is not None and is_last:
            assert self.pooled is not None
            level = Level(stage, 1)
            gradient = self.pooled.gradient(target, particle.x, level, particle.latents)
            scaled = step.scale * gradient
            u = scaled + step.grow * vjp(scaled)
            linear = particle.twisted.linear
            assert linear is not None
            z, log_ratio = self.proposal.draw(key, u, linear.noise_scale)
            return unravel(mean + step.scale * (z + step.grow * jvp(z))), log_ratio

        without = target.is_ignored(names)

        def observe(flat: Array) -> Observations:
            found = target.observations(
                particle.x | unravel(flat), particle.latents, noiseless=names
            )
            # Before the last stage, only the noiseless entries of this stage are observed.
            return found if is_last else found.last(without.size)

        def transposed(vector: Array) -> Array:
            """Return L' times a vector."""
            scaled = step.scale * vector
            return scaled + step.grow * vjp(scaled)

        linear = LinearObservations(observe, mean)
        residual, u = linear.residual, transposed(linear.gradient)
        cross = jax.vmap(transposed)(linear.jacobian())
        # Noiseless entries, which come last, have variance 0 and must be matched exactly; those
        # without effect have residual 0 and variance 1, and their constant is removed below.
        num_noisy = residual.size - without.size
        noise, rounding = linear.at.first_covariance(num_noisy), rounding_variance(cross @ cross.T)
        root, ignored = square_root(noise, rounding), jnp.where(without, 1.0, 0.0)
        noise_factor = jax.scipy.linalg.block_diag(root.as_matrix(), jnp.diag(ignored))
        white, log_det = (residual, cross, noise_factor), jnp.zeros(())
        if residual.size:
            noises = noise.as_matrix() + rounding * jnp.eye(num_noisy), jnp.diag(ignored)
            factor = linalg.cholesky(cross @ cross.T + jax.scipy.linalg.block_diag(*noises))
            columns = jnp.column_stack([residual, cross, noise_factor])
            solved = linalg.solve_triangular(factor, columns)
            white = solved[:, 0], solved[:, 1 : 1 + len(mean)], solved[:, 1 + len(mean) :]
            log_det = linalg.log_det(factor)
        z, log_ratio = _draw_conditioned(key, u, *white)
        num_free = residual.size - jnp.sum(without)
        log_ratio -= 0.5 * (log_det + jnp.log(2 * jnp.pi) * num_free)
        if num_noisy:
            error = (residual - cross @ z)[:num_noisy]
            log_ratio -= log_density(whitened(root, error), lx.diagonal(root))
        x_0 = unravel(mean + step.scale * (z + step.grow * jvp(z)))
        return target.clamp(x_0), log_ratio


def _coefficients(
    target: Target, like: Values, make: Callable[[GaussianDiffusion], MatchedStep]
) -> MatchedStep:
    """Return the coefficients of a step for every coordinate of the running sites."""
    each = {name: make(target.models[name].process) for name in like}  # pyright: ignore
    names = MatchedStep._fields
    return MatchedStep(
        *(flat_like({site: getattr(s, name) for site, s in each.items()}, like) for name in names)
    )


def _denoiser(
    target: Target, particle: Particle, unravel: Callable[[Array], Values], level: Level
) -> Callable[[Array], Array]:
    """Return E[x_0 | x_t] of the running sites, flattened, as a function of their x_t."""

    def denoiser(flat: Array) -> Array:
        estimates = target.estimate(particle.x | unravel(flat), level, particle.latents)
        return ravel_pytree({name: estimate.mean for name, estimate in estimates.items()})[0]

    return denoiser


def _linearised(
    function: Callable[[Array], Array], at: Float[Array, " d"]
) -> tuple[Float[Array, " d"], Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the value, the Jacobian-vector product and the vector-Jacobian product."""
    value, jvp = jax.linearize(function, at)
    vjp = jax.linear_transpose(jvp, at)
    return value, jvp, lambda vector: vjp(vector)[0]


def _draw_with(
    key: Array,
    u: Float[Array, " d"],
    linear: Linearised,
    step: MatchedStep,
    vjp: Callable[[Array], Array],
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Draw z conditioned on the observations, linearised; also return log p(z) - log q(z)."""
    # G = A Cov[x_0, z | x_t], see `MatchedStep`; `linear.jacobian` is A dm/dx_t.
    cross = step.cross_scale * linear.jacobian
    cross = cross - step.shrink * jax.vmap(vjp)(cross)
    # From here on residuals and G are multiplied by L^{-1}, so that S is the identity.
    residual, num_observed = linear.residual, linear.residual.size
    if num_observed:
        cross = linalg.solve_triangular(linear.factor, cross)
        # G is a linearisation, so I - G G' may be indefinite unless G is bounded.
        cross = jnp.sqrt(_shrinkage(cross)) * cross
    noise_factor = linalg.cholesky(jnp.eye(num_observed) - cross @ cross.T)
    z, log_ratio = _draw_conditioned(key, u, residual, cross, noise_factor)
    if num_observed:
        # The determinant of L is part of both normal densities and cancels.
        white = linalg.solve_triangular(noise_factor, residual - cross @ z)
        log_ratio += 0.5 * (white @ white + linalg.log_det(noise_factor))
    return z, log_ratio


def _shrinkage(cross: Float[Array, "m d"]) -> Float[Array, ""]:
    """Return c <= 1 such that no eigenvalue of c G G' exceeds `MAX_EXPLAINED`."""
    largest = linalg.largest_eigenvalue(cross @ cross.T)
    return jnp.minimum(1.0, MAX_EXPLAINED / jnp.maximum(largest, 1e-30))


def _draw_conditioned(
    key: Array,
    u: Float[Array, " d"],
    residual: Float[Array, " m"],
    cross: Float[Array, "m d"],
    noise_factor: Float[Array, "m m"],
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """Draw z ~ N(u, I) conditioned on r = G z + N(0, M M'), by Matheron's rule.

    Also returns log N(z; 0, I) - log N(z; u, I) - |r - G u|^2 / 2. The residual r, G = `cross` and
    M = `noise_factor` are whitened: G G' + M M' = I.
    """
    e, error = jnp.split(jax.random.normal(key, (u.size + residual.size,), u.dtype), [u.size])
    log_normaliser = jnp.zeros(())
    if residual.size:
        centred = residual - cross @ u
        log_normaliser = -0.5 * (centred @ centred)
        e = e + cross.T @ (centred - cross @ e - noise_factor @ error)
    return u + e, log_normaliser - jnp.sum(u * (0.5 * u + e))
