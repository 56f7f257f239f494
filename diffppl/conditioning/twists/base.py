"""Twists: approximations to p(y given x_t) that let a chain look ahead.

A twist looks at x_t through the denoiser and returns three things for one particle: the
log-value log psi_t(x_t, u), which approximates log E[r(x_0, u) given x_t]; the model's own estimate
of x_0; and the *guided* estimate, conditioned on what the program observed. Handing the guided
estimate to `process.reverse` gives a guided kernel, so guidance changes the kernel, not the loop.

For real data, with C_t = Cov[x_0 given x_t] = (1-abar_t)/sqrt(abar_t) dE[x_0 given x_t]/dx_t
(Tweedie's second-order formula), and an observed site of mean h(x_0) and covariance R:

    psi_t(x_t)          = N(y; h(m), H C_t H' + R),   m = E[x_0 given x_t], H = dh/dx_0 at m
    guided E[x_0 | x_t] = m + C_t H' (H C_t H' + R)^{-1} (y - h(m))

Any positive psi leaves a weighted method consistent; a better one wastes fewer particles.

To add one, subclass `AbstractTwist`, mark it `typing.final`, and add a row to the tests' registry.
`guided_step` is the usual `propose`.

References:
    Wu et al. 2023 (twisted SMC); Chung et al. 2023 (the point estimate); Song et al. 2023 (PiGDM,
    isotropic covariance); Boys et al. 2024 (Tweedie covariance).
"""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...checks import short_repr
from ...networks import AbstractDenoiser
from ..program import Values
from ..target import Target

Estimates = dict[str, Any]


@final
class Linearised(eqx.Module):
    """How log psi_t changes with x_t: log N(residual - rows dx; 0, covariance) + score dx.

    `residual` is y - h(m), shape `(m,)`; `covariance` is H C_t H' + R; `rows` = dh(m)/dx_t, shape
    `(m, d)`, and `score`, shape `(d,)`, are over all diffusion sites flattened. A twist that does
    not take observations apart has m = 0 and says all in its score.
    """

    residual: Float[Array, " m"]
    covariance: Float[Array, "m m"]
    rows: Float[Array, "m d"]
    score: Float[Array, " d"]


@final
class Twisted(eqx.Module):
    """What a twist says of one particle at time t; `linear` for real data only."""

    log_value: Float[Array, ""]
    estimates: Estimates
    guided: Estimates
    linear: Linearised | None


class AbstractTwist(eqx.Module):
    """An approximation to E[r(x_0, u) given x_t]."""

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def check(self, target: Target) -> None:
        """Refuse programs that the twist cannot handle, naming the site."""

    @abc.abstractmethod
    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """The twist at one particle (model units)."""

    @abc.abstractmethod
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
        """Draw x_{t-1} from the guided kernel q; also log p(x_{t-1} given x_t) - log q.

        With `given`, that x_{t-1} is weighed and nothing is drawn.
        """

    @abc.abstractmethod
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
        """Draw x_0 near p(x_0 given x_1) r(x_0, u); also log p(x_0 given x_1) - log q(x_0).

        Entries that were observed without noise are set to their values; their density under p
        is then in the difference.
        """


def guided_step(
    key: Array, target: Target, x_t: Values, twisted: Twisted, t: Array, given: Values | None
) -> tuple[Values, Float[Array, ""]]:
    """The model's own kernel with the guided estimate in place of its own."""
    x: Values = {}
    log_ratio = jnp.zeros(())
    keys = jax.random.split(key, len(target.models()))
    for (name, model), site_key in zip(target.models().items(), keys, strict=True):
        process = model.process
        p = process.reverse(x_t[name], twisted.estimates[name], t)
        q = process.reverse(x_t[name], twisted.guided[name], t)
        drawn = q.sample(site_key) if given is None else given[name]
        x[name] = jnp.asarray(drawn, process.dtype)
        # Differences before sums: the densities themselves are large.
        log_ratio = log_ratio + jnp.sum(jnp.subtract(p.log_prob(x[name]), q.log_prob(x[name])))
    return x, log_ratio


def require_kind(target: Target, twist: AbstractTwist, *, discrete: bool, remedy: str) -> None:
    """Refuse a program whose diffusion sites are discrete where they must not be, or real."""
    for name, model in target.models().items():
        is_discrete = model.process.support.is_discrete
        if is_discrete != discrete:
            raise ValueError(
                f"twist={type(twist).__name__}() cannot look at site {name!r}, whose data are "
                f"{'discrete' if is_discrete else 'real'}; use twist={remedy}."
            )


def require_noise(target: Target, twist: AbstractTwist, remedy: str) -> None:
    """Refuse observations without noise."""
    if target.exact is not None:
        raise ValueError(
            f"twist={type(twist).__name__}() needs noise, but site {target.sites.exact[0]!r} is an "
            f"observed Delta; use twist={remedy}."
        )


def denoise(target: Target, x_t: Values, t: Array, latents: Array) -> Estimates:
    """The model's estimate of x_0 at each diffusion site, for one particle."""
    contexts = target.contexts(latents)
    return {
        name: model.estimate(x_t[name], t, contexts[name])
        for name, model in target.models().items()
    }


def tweedie_factor(target: Target, t: Array) -> Values:
    """(1 - alpha_bar_t) / sqrt(alpha_bar_t) of each site; 0 where nothing of x_0 is left."""

    def factor(model: Any) -> Array:
        schedule = model.process.schedule
        signal, noise = jnp.sqrt(schedule.alpha_bar()[t]), schedule.noise()[t]
        return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1.0), 0.0)

    return target.map_sites(factor)


SLACK = 0.3
"""Of a learned network's site: how much of `learned_noise` is added to the spread of x_0."""


def learned_noise(target: Target, t: Array, like: Values) -> Float[Array, " d"]:
    """1 - alpha_bar_t of each coordinate of a learned network's site; 0 where the answer is known.

    What a known denoiser says of the spread of x_0 is true; a learned one's Jacobian is not fit.
    """

    def noise(model: Any) -> Array:
        if isinstance(model.network, AbstractDenoiser):
            return jnp.zeros(())
        return model.process.schedule.noise()[t]

    return flat_like(target.map_sites(noise), like)


def shifted(estimates: Estimates, shifts: Values) -> Estimates:
    """Gaussian estimates with their means moved."""
    return {
        name: eqx.tree_at(lambda e: e.mean, estimate, estimate.mean + shifts[name])
        for name, estimate in estimates.items()
    }


def flat_like(values: Values, like: Values) -> Float[Array, " d"]:
    """One number per site, spread over the site's coordinates, flattened."""
    spread = {name: jnp.broadcast_to(values[name], like[name].shape) for name in like}
    return ravel_pytree(spread)[0]
