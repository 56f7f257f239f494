"""Twists: approximations to p(y | x_t).

A twist is evaluated at one particle. It returns the log-value log psi_t(x_t, u), which approximates
log E[r(x_0, u) | x_t], the model's own estimate of x_0, and the *guided* estimate, which is
conditioned on the observations. `process.reverse` of the guided estimate is the guided kernel: a
twist changes the kernel, not the loop.

For real data, with C_t = Cov[x_0 | x_t] = (1-abar_t)/sqrt(abar_t) dE[x_0 | x_t]/dx_t
(Tweedie's second-order formula), and an observed site of mean h(x_0) and covariance R:

    psi_t(x_t)          = N(y; h(m), H C_t H' + R),   m = E[x_0 | x_t], H = dh/dx_0 at m
    guided E[x_0 | x_t] = m + C_t H' (H C_t H' + R)^{-1} (y - h(m))

Any positive psi leaves a weighted method consistent; a more accurate one gives a larger effective
sample size.

To add one, subclass `AbstractTwist`, mark it `typing.final`, implement `resolve`, `has_jacobian`
and `evaluate`, and add a row to the tests' registry.

References:
    Wu et al. 2023 (twisted SMC); Chung et al. 2023 (the point estimate); Song et al. 2023 (PiGDM,
    isotropic covariance); Boys et al. 2024 (Tweedie covariance).
"""

import abc
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from ...checks.arguments import Time, as_float, check_fields, short_repr
from ...denoisers import AbstractDenoiser
from ..program import Values
from ..target import Estimates, Level, Target


@final
class Linearised(eqx.Module):
    """Linearisation of log psi_t in x_t: log N(L residual - jacobian dx; 0, L L') + score dx.

    `factor` is the lower Cholesky factor L of H C_t H' + R; `residual` is L^{-1} (y - h(m)), shape
    `(m,)`; `jacobian` is dh(m)/dx_t, shape `(m, d)`; `score` has shape `(d,)`. The last two are
    over the real sites of the running stage, flattened. A twist that does not separate the
    observations has m = 0, and `score` is its whole gradient. `noise_scale` is the noise variance
    of the particle relative to that of a `Pool`.
    """

    residual: Float[Array, " m"]
    factor: Float[Array, "m m"]
    jacobian: Float[Array, "m d"]
    score: Float[Array, " d"]
    noise_scale: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)


@final
class Twisted(eqx.Module):
    """A twist evaluated at one particle; dictionaries are over the sites of the running stage.

    Attributes:
        log_value: log psi_t(x_t, u), nats.
        estimates: the model's own estimates of x_0.
        guided: estimates of x_0 conditioned on the observations.
        tilts: for discrete sites, log-factors on the states of x_{t-1} that multiply the kernel,
            if conditioning does not act on the estimate of x_0; {} otherwise.
        linear: linearisation over the real sites; None if there are none.
        is_joint: whether discrete sites are conditioned over all their joint states.
    """

    log_value: Float[Array, ""]
    estimates: Estimates
    guided: Estimates
    tilts: Values
    linear: Linearised | None
    is_joint: bool = eqx.field(static=True, default=False)


class AbstractTwist(eqx.Module):
    """An approximation to E[r(x_0, u) | x_t]."""

    def __check_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def resolve(self, target: Target) -> "AbstractTwist":
        """Return the twist with every setting filled in.

        Raises:
            ValueError: the twist does not support the program.
        """

    @abc.abstractmethod
    def has_jacobian(self, target: Target) -> bool:
        """Return whether `evaluate` of a resolved twist forms the denoiser's Jacobian."""

    @abc.abstractmethod
    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        """Evaluate the twist at one particle, in model units."""


class AbstractAdaptiveTwist(AbstractTwist):
    """A twist with quantities that are computed from the particles of each level."""

    num_references: eqx.AbstractVar[int]
    """Number of particles of a level at which the network is evaluated for these quantities."""

    @abc.abstractmethod
    def adapted(
        self,
        target: Target,
        x: Values,
        level: Level,
        latents: Float[Array, "n p"],
        log_weights: Float[Array, " n"],
    ) -> "AbstractAdaptiveTwist":
        """Return the twist for a level.

        Args:
            target: the target.
            x, latents: the particles, with a leading axis.
            level: the level of the running stage.
            log_weights: normalised log-weights of the particles.
        """


def log_next_stage(
    twist: AbstractTwist, target: Target, x: Values, level: Level, latents: Array
) -> Float[Array, ""]:
    """Return log E[r | x_0 up to the running stage]: log r, or the twist of the next stage."""
    if level.stage == target.structure.num_stages - 1:
        return target.log_likelihood(x, latents)
    return twist.evaluate(target, x, Level(level.stage + 1, target.num_steps), latents).log_value


def check_kind(target: Target, twist: AbstractTwist, *, discrete: bool, remedy: str) -> None:
    """Raise ValueError if the program has diffusion sites of the other kind of data."""
    for name in target.sites(discrete=not discrete):
        both = bool(target.sites(discrete=discrete))
        raise ValueError(
            f"twist={type(twist).__name__}() cannot handle site {name!r}, whose data are "
            f"{'real' if discrete else 'discrete'}; use twist={'Mixed()' if both else remedy}."
        )


def check_noise(target: Target, twist: AbstractTwist, remedy: str) -> None:
    """Raise ValueError if an observation has no noise."""
    if target.has_noiseless:
        raise ValueError(
            f"twist={type(twist).__name__}() requires observation noise, but site "
            f"{target.structure.noiseless[0]!r} is an observed Delta; use twist={remedy}."
        )


def check_one_stage(target: Target, twist: AbstractTwist, remedy: str) -> None:
    """Raise ValueError if the network of a diffusion site depends on another diffusion site."""
    if target.structure.num_stages > 1:
        name = target.sites(stage=1)[0]
        raise ValueError(
            f"twist={type(twist).__name__}() is for diffusion sites that do not depend on one "
            f"another, but the network or context of site {name!r} depends on another one; use "
            f"twist={remedy}."
        )


def tweedie_factor(target: Target, level: Level, names: tuple[str, ...]) -> Values:
    """Return (1 - alpha_bar_t) / sqrt(alpha_bar_t) of each site; 0 where alpha_bar_t = 0."""
    factors = {}
    for name in names:
        schedule = target.models[name].process.schedule
        t = time_of(target, level, name)
        signal, noise = jnp.sqrt(schedule.alpha_bar()[t]), schedule.one_minus_alpha_bar()[t]
        # The inner `where` avoids a division by zero, whose gradient is NaN.
        factors[name] = jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1.0), 0.0)
    return factors


def noise_of(target: Target, level: Level, names: tuple[str, ...]) -> Values:
    """Return 1 - alpha_bar_t of each site."""
    return {
        name: target.models[name].process.schedule.one_minus_alpha_bar()[
            time_of(target, level, name)
        ]
        for name in names
    }


def time_of(target: Target, level: Level, name: str) -> Time:
    """Return the t of a site: that of the level in the running stage, T in later ones."""
    return level.t if name in target.sites(level.stage) else target.num_steps


INFLATION = 0.3
"""Inflation of Var[x_0 | x_t] for learned networks, as a fraction of 1 - alpha_bar_t. Without it,
fitted networks whose Jacobian was too small gave an evidence several nats too low."""


def learned_noise(target: Target, level: Level, names: tuple[str, ...]) -> Values:
    """Return 1 - alpha_bar_t of each site with a learned network; 0 for analytic denoisers."""
    noise = noise_of(target, level, names)
    return {
        name: jnp.zeros(()) if is_analytic(target.models[name].network) else each
        for name, each in noise.items()
    }


def is_analytic(network: object) -> bool:
    """Return whether a network, without its wrappers, is an analytic denoiser."""
    while not isinstance(network, AbstractDenoiser | None):
        network = getattr(network, "network", None)  # unwrap, as for a respaced chain
    return network is not None


def shifted(estimates: Estimates, shifts: Values) -> Estimates:
    """Shift the means of Gaussian estimates."""
    return {
        name: eqx.tree_at(lambda e: e.mean, estimate, estimate.mean + shifts[name])
        for name, estimate in estimates.items()
    }


def flat_like(values: Values, like: Values) -> Float[Array, " d"]:
    """Broadcast one number per site over its coordinates, and flatten."""
    spread = {name: jnp.broadcast_to(values[name], like[name].shape) for name in like}
    return ravel_pytree(spread)[0]


def only_score(score: Float[Array, " d"], noise_scale: ArrayLike = 1.0) -> Linearised:
    """Return a `Linearised` with a score and no observations."""
    no_rows = jnp.zeros((0, score.size))
    return Linearised(jnp.zeros(0), jnp.zeros((0, 0)), no_rows, score, noise_scale)
