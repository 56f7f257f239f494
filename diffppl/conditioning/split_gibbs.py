"""Split Gibbs sampling: a likelihood step and a denoising step in turn, at falling noise.

The posterior is enlarged by a copy z of x_0 that the observations see, bound to it by

    p(x_0, z | y) proportional to p(x_0) N(z; x_0, tau^2 I) r(z).

Given x_0, z is a normal conditioned on the observations, linearised at x_0; given z, x_0 is a draw
from the reverse chain, started at z as a state at noise-to-signal tau. tau falls from the chain's
top level to a share of the observations' own noise, where z and x_0 count as one.

A sweep that ended in x_1 plus noise, or whose steps lost a little of the variance, would do so
again in every sweep; so the last step draws from N(E[x_0 | x_1], Var[x_0 | x_1]), and a model
without a variance of its own takes the upper one, that of data of unit variance.
"""

import math
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..checks.arguments import as_float, check_float, size_field
from ..samplers import Ancestral
from .conditioned import draw_given_observations
from .method import AbstractMethod, Draws, Exactness, draw_base, only_diffusion_sites, unweighted
from .program import Values
from .target import Level, Target
from .twists.base import flat_like

_MIN_SIGNAL = 1e-6  # of alpha_bar: a chain may end in pure noise
_NUM_PROBES = 32
_OFF_CENTER = 1e-3  # standard deviations of the data


@final
class SplitGibbs(AbstractMethod):
    """Alternates likelihood and denoising; no derivative of the network. Approximate.

    For large images and many observations: a sweep costs one solve by conjugate gradients with the
    program's own derivatives, and a reverse chain from the sweep's level down. Draws are
    independent runs.

    *Bias*. At noise-to-signal tau the observations H x + N(0, R) count as if their variance were
    R + tau^2 H H', and where tau^2 is far below R a sweep hardly moves x_0. Two normals with a
    correlation of 0.9, one of them seen with a standard deviation of 0.05: after 50, 200 and 1,000
    sweeps the mean of the other is off by 0.42, 0.07 and 0.01 of its posterior standard
    deviation, and its own standard deviation is 1.19, 1.05 and 1.01 times the posterior's. The
    weights of modes are as they were chosen at high noise: on the problems that `Guidance`
    describes, 200 sweeps leave a total variation of 0.01 to 0.7. Other than linear normal
    observations are linearised; `numpyro.factor` and sites without moments move z along their
    gradient, by tau at most. There is no evidence.

    Args:
        num_sweeps: how often the two steps alternate, 2 or more.
        noise_share: tau in the last half of the sweeps, as a share of the noise of the sharpest
            observation (`SplitGibbs.lowest` gives that level); a larger one mixes faster
            and is more biased. Where nothing with moments is observed, tau itself in model units.
        num_steps: read the chain at fewer steps; None keeps them all.

    Example:
        >>> posterior = dp.Posterior(program, dp.SplitGibbs(num_sweeps=50))

    References:
        Vono et al. 2019 (split Gibbs); Coeurdoux et al. 2024; Wu et al. 2024 (PnP-DM).
    """

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    num_sweeps: int = eqx.field(static=True, default=50, converter=size_field("num_sweeps", 2))
    noise_share: Float[Array, ""] = eqx.field(converter=as_float, default=0.25)
    num_steps: int | None = eqx.field(
        static=True, default=None, converter=size_field("num_steps", optional=True)
    )

    def __check_init__(self) -> None:
        check_float("noise_share", self.noise_share, 0.0, math.inf)

    def resolve(self, target: Target, num_samples: int) -> "SplitGibbs":
        del num_samples
        only_diffusion_sites(target, self)
        for name in target.sites(discrete=True):
            raise ValueError(
                f"SplitGibbs() is for real data, but site {name!r} has "
                f"{type(target.models[name].process).__name__}; use TwistedSMC()."
            )
        if target.structure.num_stages > 1:
            raise ValueError(
                f"SplitGibbs() draws all diffusion sites at once, but the network or context of "
                f"site {target.sites(1)[0]!r} depends on another one; use TwistedSMC()."
            )
        return self

    def lowest(self, target: Target) -> Int[Array, ""]:
        """The level of the last half of the sweeps: the highest whose tau is small enough."""
        most = self.noise_share**2 * _noise_to_reach(target)
        levels = jnp.arange(1, target.num_steps + 1)
        variances = jax.tree.leaves(_variances(target, levels))
        low_enough = jnp.all(jnp.stack(variances) <= most, axis=0)
        return jnp.maximum(jnp.sum(low_enough), 1)

    def _levels(self, target: Target) -> Int[Array, " sweeps"]:
        """The level of each sweep: evenly down, then at the lowest."""
        falling = (self.num_sweeps + 1) // 2
        down = jnp.minimum(jnp.arange(self.num_sweeps) / max(falling - 1, 1), 1.0)
        top, lowest = target.num_steps, self.lowest(target)
        return jnp.round(top + (lowest - top) * down).astype(jnp.int32)

    def prior_sampler(self) -> Ancestral:
        return Ancestral()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> Int[Array, ""]:
        return num_samples * jnp.sum(self._levels(target))

    def phases(self, target: Target) -> tuple[int, ...]:
        """The sweeps."""
        del target
        return (self.num_sweeps,)

    def init(self, key: Array, target: Target, num_samples: int) -> Values:
        """Near the center of the data."""
        return _near_center(key, target, num_samples)

    def step(
        self, key: Array, target: Target, state: Values, phase: int, i: Int[Array, ""]
    ) -> Values:
        """One sweep: z given x_0, then x_0 given z."""
        t = self._levels(target)[i]
        key_z, key_x = jax.random.split(key)
        variance = flat_like(_variances(target, t), {name: x[0] for name, x in state.items()})
        num = jax.tree.leaves(state)[0].shape[0]
        z = jax.vmap(
            lambda key, x: draw_given_observations(key, target, x, variance, jnp.zeros(0))
        )(jax.random.split(key_z, num), state)
        return jax.vmap(lambda key, z: _denoised(key, target, z, t))(
            jax.random.split(key_x, num), z
        )

    def end(self, key: Array, target: Target, state: Values, phase: int, num_samples: int) -> Draws:
        """The last x_0, with known entries set."""
        return unweighted(target, target.clamp(state), num_samples)


def _denoised(key: Array, target: Target, z: Values, t: Int[Array, ""]) -> Values:
    """A draw of x_0 given z, down the reverse chain from level t."""

    def estimates(x: Values, t: Any) -> dict[str, tuple[Array, Array]]:
        found = target.estimate(x, Level(0, t), jnp.zeros(0))
        upper = target.map_sites(lambda model: model.process.schedule.one_minus_alpha_bar()[t])
        return {
            name: (each.mean, jnp.where(each.variance > 0, each.variance, upper[name]))
            for name, each in found.items()
        }

    def noise(key: Array, x: Values) -> Values:
        keys = target.split_key(key)
        return {
            name: jax.random.normal(keys[name], each.shape, each.dtype) for name, each in x.items()
        }

    def step(i: Array, x: Values) -> Values:
        level, eps = t - i, noise(jax.random.fold_in(key, i), x)
        moved = {}
        for name, (mean, variance) in estimates(x, level).items():
            b, c, own = target.models[name].process.coefficients(level)  # pyright: ignore
            moved[name] = b * mean + c * x[name] + jnp.sqrt(own + b**2 * variance) * eps[name]
        return moved

    x_t = {name: z[name] / jnp.sqrt(1 + v) for name, v in _variances(target, t).items()}
    x_1 = jax.lax.fori_loop(0, t - 1, step, x_t)
    eps = noise(jax.random.fold_in(key, t), x_1)
    last = estimates(x_1, 1)
    return {name: mean + jnp.sqrt(variance) * eps[name] for name, (mean, variance) in last.items()}


def _near_center(key: Array, target: Target, num: int) -> Values:
    """`num` events beside the center of the data, where a radius, say, has no slope."""
    return jax.tree.map(lambda x: _OFF_CENTER * x, draw_base(key, target, num))


def _variances(target: Target, t: Int[Array, "..."]) -> Values:
    """tau^2 of each site at level t."""

    def variance(model: Any) -> Array:
        schedule = model.process.schedule
        return schedule.one_minus_alpha_bar()[t] / jnp.maximum(schedule.alpha_bar()[t], _MIN_SIGNAL)

    return target.map_sites(variance)


def _noise_to_reach(target: Target) -> Float[Array, ""]:
    """The least R_ii / (H H')_ii of the observations at the center of the data; 1 without any."""
    near = jax.tree.map(lambda x: x[0], _near_center(jax.random.key(1), target, 1))
    center, unravel = ravel_pytree(target.clamp(near))
    seen = target.observations(unravel(center), jnp.zeros(0))
    if not seen.value.size:
        return jnp.ones(())
    # E (H s)_i^2 = (H H')_ii over random signs s: exact where a row of H has one entry.
    signs = jax.random.rademacher(jax.random.key(0), (_NUM_PROBES, center.size), center.dtype)
    _, push = jax.linearize(
        lambda flat: target.observations(unravel(flat), jnp.zeros(0)).mean, center
    )
    reach = jnp.mean(jax.vmap(push)(signs) ** 2, axis=0)
    variance = lx.diagonal(seen.covariance)
    return jnp.min(variance / jnp.maximum(reach, jnp.finfo(center.dtype).tiny))
