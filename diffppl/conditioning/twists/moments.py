"""Moment matching: the likelihood averaged over a Gaussian guess at x_0 given x_t."""

import abc
from collections.abc import Callable
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from ...checks import as_float, short_repr
from ..observations import Observations
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
    shifted,
    tweedie_factor,
)
from .gaussian import (
    MOST_DENSE,
    AbstractGaussianTwist,
    conjugate_gradients,
    normal_log_density,
    rounding_slack,
)

MOST_FOR_TWEEDIE = 8


class AbstractCovariance(eqx.Module):
    """A model of C_t = Cov[x_0 given x_t]."""

    is_jacobian: eqx.AbstractClassVar[bool]
    """Whether it is `factor` times the denoiser's Jacobian."""
    slack: eqx.AbstractVar[Float[Array, ""]]
    """A variance to add where a network was learned, as a share of the noise's."""

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        """C_t times a vector.

        Args:
            vector: over all coordinates.
            pull_back: the vector-Jacobian product of E[x_0 given x_t] with respect to x_t.
            factor: (1 - alpha_bar_t) / sqrt(alpha_bar_t) of each coordinate.
            noise: 1 - alpha_bar_t of each coordinate.
        """


@final
class Tweedie(AbstractCovariance):
    """The denoiser's own: (1 - alpha_bar_t) / sqrt(alpha_bar_t) dE[x_0 given x_t] / dx_t.

    Exact for an exact denoiser, at one vector-Jacobian product per observed number, or per
    iteration of conjugate gradients where many are observed. A learned denoiser's Jacobian is
    neither symmetric nor positive, so the nearest such matrix is taken; and since it may say that
    x_0 is certain where it is not, which would turn sharp observations into a search for the few
    particles that meet them too soon, the noise's own variance is added in part.

    Args:
        slack: what is added, as a share of 1 - alpha_bar_t; known answers are taken at their word.
    """

    slack: Float[Array, ""]
    is_jacobian: ClassVar[bool] = True

    def __init__(self, slack: ArrayLike = SLACK) -> None:
        self.slack = as_float(slack)

    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        """See `AbstractCovariance.times`."""
        del noise
        return factor * pull_back(vector)


@final
class Isotropic(AbstractCovariance):
    """r_t^2 I with r_t^2 = v (1 - alpha_bar_t) / (alpha_bar_t v + 1 - alpha_bar_t).

    That of data with independent coordinates of variance `variance` (model units; `fit` scales
    data to 1). One vector-Jacobian product per step however many numbers are observed.

    References:
        Song et al. 2023 (PiGDM), there with variance 1.
    """

    variance: Float[Array, ""]
    is_jacobian: ClassVar[bool] = False

    def __init__(self, variance: ArrayLike = 1.0) -> None:
        self.variance = as_float(variance)

    @property
    def slack(self) -> Float[Array, ""]:
        """None: no Jacobian is asked."""
        return jnp.zeros(())

    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        """See `AbstractCovariance.times`."""
        del pull_back, factor
        return self.variance * noise / ((1 - noise) * self.variance + noise) * vector


@final
class MomentMatching(AbstractGaussianTwist):
    """Linearise each observed site's mean at E[x_0 given x_t] and add the spread of x_0 to it.

    Exact where E[x_0 given x_t] is linear and the observations are linear and Gaussian. Observed
    sites without a mean and a variance, `numpyro.factor` and the priors of other latents enter
    at the point estimate. Up to 32 observed numbers are solved for exactly; more by conjugate
    gradients, with a determinant that is only estimated (so the twist is a little less sharp, and
    a weighted method as consistent).

    Args:
        covariance: `Tweedie()` or `Isotropic()`; None takes `Tweedie()` for up to 8 observed
            numbers and `Isotropic()`, whose cost does not grow with them, for more.

    References:
        Boys et al. 2024 (Tweedie); Song et al. 2023 (isotropic); Rozet et al. 2024 (conjugate
        gradients).
    """

    covariance: AbstractCovariance | None = None

    def check(self, target: Target) -> None:
        """Real data only."""
        require_kind(target, self, discrete=False, remedy="ExpectedLikelihood()")

    def covariance_for(self, num_observed: int) -> AbstractCovariance:
        """The covariance in use."""
        if self.covariance is not None:
            return self.covariance
        return Tweedie() if num_observed <= MOST_FOR_TWEEDIE else Isotropic()

    def takes_jacobian(self, target: Target) -> bool:
        """See `AbstractGaussianTwist.takes_jacobian`."""
        observed = target.num_observed()
        return 0 < observed <= MOST_DENSE and self.covariance_for(observed).is_jacobian

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""
        flat_x_t, unravel = ravel_pytree(x_t)

        def denoised(flat: Array) -> tuple[Array, Estimates]:
            estimates = denoise(target, unravel(flat), t, latents)
            return ravel_pytree({name: e.mean for name, e in estimates.items()})[0], estimates

        mean, vjp, estimates = jax.vjp(denoised, flat_x_t, has_aux=True)
        pull_back = lambda vector: vjp(vector)[0]  # noqa: E731

        def observe(flat: Array) -> Observations:
            return target.observations(unravel(flat), latents, exact=True)

        seen = observe(mean)
        residual = seen.value - seen.mean
        rest = pull_back(jax.grad(lambda flat: observe(flat).log_rest)(mean))
        factor = flat_like(tweedie_factor(target, t), x_t)
        noise = flat_like(target.map_sites(lambda m: m.process.schedule.noise()[t]), x_t)
        covariance = self.covariance_for(residual.size)
        slack = covariance.slack * learned_noise(target, t, x_t)

        def spread(vector: Array) -> Array:
            return covariance.times(vector, pull_back, factor, noise) + slack * vector

        empty = Linearised(jnp.zeros(0), jnp.zeros((0, 0)), jnp.zeros((0, mean.size)), rest)
        if residual.size == 0:
            value, pulled, linear = jnp.zeros(()), jnp.zeros_like(mean), empty
        elif residual.size > MOST_DENSE:
            value, cotangent = _many(observe, mean, residual, spread)
            pulled = pull_back(cotangent)
            linear = eqx.tree_at(lambda each: each.score, empty, rest + pulled)
        else:
            jacobian = jax.jacrev(lambda flat: observe(flat).mean)(mean)
            if covariance.is_jacobian:
                rows = jax.vmap(pull_back)(jacobian)
                observed = _nearest_covariance((rows * factor) @ jacobian.T)
                observed += (jacobian * slack) @ jacobian.T
            else:
                rows = None
                observed = jax.vmap(spread)(jacobian) @ jacobian.T
            total = observed + rounding_slack(observed) + seen.covariance.as_matrix()
            value, solved = normal_log_density(residual, total)
            if rows is None:
                pulled = pull_back(jacobian.T @ solved)
                linear = eqx.tree_at(lambda each: each.score, empty, rest + pulled)
            else:
                pulled = rows.T @ solved
                linear = Linearised(residual, total, rows, rest)
        shifts = unravel(factor * (rest + pulled))
        guided = _pinned(target, shifted(estimates, shifts))
        return Twisted(value + seen.log_rest, estimates, guided, linear)


def _pinned(target: Target, guided: Estimates) -> Estimates:
    """Known entries are certain: the guided kernel is then q(x_{t-1} given x_t, x_0) for them."""
    if target.exact is None:
        return guided
    known = target.known()
    return {
        name: eqx.tree_at(
            lambda e: (e.mean, e.variance),
            estimate,
            (
                jnp.where(known[name][0], known[name][1], estimate.mean),
                jnp.where(known[name][0], 0.0, estimate.variance),
            ),
        )
        for name, estimate in guided.items()
    }


def _nearest_covariance(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Symmetric, without negative eigenvalues."""
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.maximum(values, 0)) @ vectors.T


def _many(
    observe: Callable[[Array], Observations],
    mean: Float[Array, " d"],
    residual: Float[Array, " m"],
    spread: Callable[[Array], Array],
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """log psi_t and H' (H C H' + R)^{-1} residual, by products alone.

    The determinant is that of a diagonal with the mean of H C H', which one probe of random signs
    estimates: a constant choice of signs, since psi must be a function of x_t.
    """
    noise = observe(mean).covariance
    _, push = jax.linearize(lambda flat: observe(flat).mean, mean)
    pull = jax.linear_transpose(push, mean)
    solved = conjugate_gradients(lambda v: push(spread(pull(v)[0])) + noise.mv(v), residual)
    signs = jax.random.rademacher(jax.random.key(0), residual.shape, residual.dtype)
    probe = pull(signs)[0]
    typical = jnp.maximum(probe @ spread(probe), 0.0) / residual.size
    log_det = jnp.sum(jnp.log(2 * jnp.pi * (lx.diagonal(noise) + typical)))
    return -0.5 * (residual @ solved + log_det), pull(solved)[0]
