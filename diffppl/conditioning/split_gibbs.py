"""Split Gibbs sampling: alternating likelihood and denoising steps at decreasing noise.

The posterior is augmented by a copy z of x_0, on which the observations depend:

    p(x_0, z | y) proportional to p(x_0) N(z; x_0, tau^2 I) r(z).

Conditionally on x_0, z is drawn from a normal conditioned on the observations, linearised at x_0;
conditionally on z, x_0 is drawn from the reverse chain, started at z as a state of noise-to-signal
ratio tau. tau decreases from the top level of the chain to a fraction of the observation noise,
where the difference between z and x_0 is negligible.

An error of the denoising step, such as the noise of x_1 or a small loss of variance, would recur in
every sweep. The final step therefore draws from N(E[x_0 | x_1], Var[x_0 | x_1]), and for a model
without a variance the upper bound is used, that of data of unit variance.
"""

import math
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..checks.arguments import Time, as_float, check_float, size_field
from ..model import DiffusionModel
from ..processes.support import check_real
from ..samplers import Ancestral
from .conditioned import draw_conditioned
from .method import AbstractMethod, Draws, Exactness, check_no_latents, draw_base, unweighted
from .program import Values
from .target import Level, Target
from .twists.base import flat_like
from .twists.normal import LinearObservations

_MIN_ALPHA_BAR = 1e-6  # alpha_bar_T may be 0
_NUM_PROBES = 32  # random signs of the estimate of the diagonal of H H'
_OFF_CENTER = 1e-3  # standard deviations of the data


@final
class SplitGibbs(AbstractMethod):
    """Split Gibbs sampling, without derivatives of the network. Approximate.

    For large images and many observations: a sweep costs one solve by conjugate gradients with
    derivatives of the program, and a reverse chain from the level of the sweep. Draws are
    independent runs.

    *Bias*. At noise-to-signal ratio tau the observations H x + N(0, R) have the effective variance
    R + tau^2 H H'; for tau^2 much smaller than R a sweep changes x_0 little. For two normals with
    correlation 0.9, one observed with standard deviation 0.05, the error of the mean of the other
    after 50, 200 and 1,000 sweeps is 0.42, 0.07 and 0.01 posterior standard deviations, and its
    standard deviation is 1.19, 1.05 and 1.01 times the exact one. Weights of modes are determined
    at high noise: on the problems that `Guidance` describes, 200 sweeps have a total variation
    error of 0.01 to 0.7. Nonlinear and non-normal observations are linearised; `numpyro.factor` and
    sites without moments shift z along their gradient, by at most tau. The evidence is not
    estimated.

    Args:
        num_sweeps: number of sweeps, 2 or more.
        noise_share: tau in the second half of the sweeps, as a fraction of the smallest noise of
            the observations (`SplitGibbs.lowest` is that level); larger values mix faster and are
            more biased. If no site with moments is observed, tau itself in model units.
        num_steps: number of steps to respace the chain to; None for all.

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
        check_no_latents(target, self)
        for name, model in target.models.items():
            subject = f"site {name!r} has"
            check_real("SplitGibbs()", model.process, "; use TwistedSMC()", subject=subject)
        if target.structure.num_stages > 1:
            raise ValueError(
                f"SplitGibbs() draws all diffusion sites at once, but the network or context of "
                f"site {target.sites(1)[0]!r} depends on another one; use TwistedSMC()."
            )
        return self

    def lowest(self, target: Target) -> Int[Array, ""]:
        """Return the level of the second half of the sweeps: the highest with small enough tau."""
        largest = self.noise_share**2 * _min_relative_noise(target)
        levels = jnp.arange(1, target.num_steps + 1)
        variances = jax.tree.leaves(_variances(target, levels))
        low_enough = jnp.all(jnp.stack(variances) <= largest, axis=0)
        return jnp.maximum(jnp.sum(low_enough), 1)

    def _levels(self, target: Target) -> Int[Array, " sweeps"]:
        """Return the level of each sweep: linear from the top level, then constant."""
        num_decreasing = (self.num_sweeps + 1) // 2
        fraction = jnp.minimum(jnp.arange(self.num_sweeps) / max(num_decreasing - 1, 1), 1.0)
        top, lowest = target.num_steps, self.lowest(target)
        return jnp.round(top + (lowest - top) * fraction).astype(jnp.int32)

    def prior_sampler(self) -> Ancestral:
        return Ancestral()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> Int[Array, ""]:
        return num_samples * jnp.sum(self._levels(target))

    def phases(self, target: Target) -> tuple[int, ...]:
        """Return the number of sweeps, in a single phase."""
        del target
        return (self.num_sweeps,)

    def init(self, key: Array, target: Target, num_samples: int) -> Values:
        """Draw x_0 near the center of the data."""
        return _near_center(key, target, num_samples)

    def step(
        self, key: Array, target: Target, state: Values, phase: int, i: Int[Array, ""]
    ) -> Values:
        """Perform one sweep: draw z conditionally on x_0, then x_0 conditionally on z."""
        t = self._levels(target)[i]
        key_z, key_x = jax.random.split(key)
        variance = flat_like(_variances(target, t), {name: x[0] for name, x in state.items()})
        num = jax.tree.leaves(state)[0].shape[0]
        z = jax.vmap(lambda key, x: draw_conditioned(key, target, x, variance, jnp.zeros(0)))(
            jax.random.split(key_z, num), state
        )
        return jax.vmap(lambda key, z: _denoise(key, target, z, t))(jax.random.split(key_x, num), z)

    def end(self, key: Array, target: Target, state: Values, phase: int, num_samples: int) -> Draws:
        """Return the final x_0, with the noiselessly observed entries set."""
        return unweighted(target, target.clamp(state), num_samples)


def _denoise(key: Array, target: Target, z: Values, t: Int[Array, ""]) -> Values:
    """Draw x_0 conditionally on z by the reverse chain from level t."""

    def estimates(x: Values, t: Time) -> dict[str, tuple[Array, Array]]:
        found = target.estimate(x, Level(0, t), jnp.zeros(0))
        # Var[x_0 | x_t] for data of unit variance.
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
        drawn = {}
        for name, (mean, variance) in estimates(x, level).items():
            # q(x_{t-1} | x_t, x_0) = N(b x_0 + c x_t, v), averaged over N(mean, variance) for x_0.
            b, c, v = target.models[name].process.coefficients(level)  # pyright: ignore
            drawn[name] = b * mean + c * x[name] + jnp.sqrt(v + b**2 * variance) * eps[name]
        return drawn

    # z ~ N(x_0, tau^2 I) is x_t / sqrt(alpha_bar_t), and 1 + tau^2 = 1 / alpha_bar_t.
    x_t = {name: z[name] / jnp.sqrt(1 + v) for name, v in _variances(target, t).items()}
    x_1 = jax.lax.fori_loop(0, t - 1, step, x_t)
    eps = noise(jax.random.fold_in(key, t), x_1)
    final = estimates(x_1, 1)
    return {name: mean + jnp.sqrt(variance) * eps[name] for name, (mean, variance) in final.items()}


def _near_center(key: Array, target: Target, num: int) -> Values:
    """Draw `num` events near the center, where functions such as a norm have no gradient."""
    return jax.tree.map(lambda x: _OFF_CENTER * x, draw_base(key, target, num))


def _variances(target: Target, t: Int[Array, "..."]) -> Values:
    """Return tau^2 = (1 - alpha_bar_t) / alpha_bar_t of each site at level t."""

    def variance(model: DiffusionModel) -> Array:
        schedule = model.process.schedule
        signal = jnp.maximum(schedule.alpha_bar()[t], _MIN_ALPHA_BAR)
        return schedule.one_minus_alpha_bar()[t] / signal

    return target.map_sites(variance)


def _min_relative_noise(target: Target) -> Float[Array, ""]:
    """Return the smallest R_ii / (H H')_ii of the observations near the center; 1 without any."""
    near = jax.tree.map(lambda x: x[0], _near_center(jax.random.key(1), target, 1))
    center, unravel = ravel_pytree(target.clamp(near))
    linear = LinearObservations(
        lambda flat: target.observations(unravel(flat), jnp.zeros(0)), center
    )
    if not linear.residual.size:
        return jnp.ones(())
    # E (H s)_i^2 = (H H')_ii over random signs s; exact if row i of H has a single nonzero entry.
    signs = jax.random.rademacher(jax.random.key(0), (_NUM_PROBES, center.size), center.dtype)
    squared_norms = jnp.mean(jax.vmap(linear.push)(signs) ** 2, axis=0)
    variance = lx.diagonal(linear.at.covariance)
    return jnp.min(variance / jnp.maximum(squared_norms, jnp.finfo(center.dtype).tiny))
