"""Split Gibbs sampling: a likelihood step and a denoising step in turn, at falling noise.

The posterior is enlarged by a copy z of x_0 that the observations see, bound to it by

    p(x_0, z given y) proportional to p(x_0) N(z; x_0, tau^2 I) r(z).

Given x_0, z is a normal conditioned on the observations, linearised at x_0; given z, x_0 is what
the reverse chain makes of z as a state at noise-to-signal tau. tau falls from the chain's top level
to a share of the observations' own noise, where z and x_0 count as one.
"""

import math
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..checks import as_float, check_float
from ..processes import GaussianDiffusion
from ..samplers import Ancestral
from .method import (
    AbstractMethod,
    Draws,
    Exactness,
    draw_base,
    only_diffusion_sites,
    reverse_step,
    unweighted,
)
from .program import Values
from .target import Target
from .twists.base import flat_like
from .twists.gaussian import draw_given_observations

_LEAST_SIGNAL = 1e-6  # of alpha_bar: a chain may end in pure noise
_NUM_PROBES = 32
_OFF_CENTER = 1e-3  # standard deviations of the data


@final
class SplitGibbs(AbstractMethod):
    """Alternates likelihood and denoising; no derivative of the network. Approximate.

    For large images and many observations: a sweep costs one solve by conjugate gradients with the
    program's own derivatives, and a reverse chain from the sweep's level down. Draws are
    independent runs.

    *Bias*. At noise-to-signal tau the observations H x + N(0, R) count as if their variance were
    R + tau^2 H H', where tau^2 is far below R a sweep hardly moves x_0, and what the chain's own
    finite steps lose of the variance adds up. For N(0, 1) seen once as 1 with variance 1 the
    defaults give mean 0.48 and variance 0.47 for 0.5 and 0.5, and 200 sweeps 0.485 and 0.465
    (`schedules.LogSNRLinear(100, (0.01, 50))`). The weights of modes are as they were chosen at
    high noise: on the problems that `Guidance` describes, 200 sweeps leave a total variation of
    0.01 to 0.7. Other than linear normal observations are linearised; `numpyro.factor` and sites
    without moments move z along their gradient, by tau at most. There is no evidence.

    Args:
        num_sweeps: how often the two steps alternate, 2 or more.
        noise_share: tau in the last half of the sweeps, as a share of the noise of the sharpest
            observation (`SplitGibbs.lowest` says which level that is); a larger one mixes faster
            and is more biased. Where nothing with moments is observed, tau itself in model units.
        num_steps: read the chain at fewer steps; None keeps them all.

    Example:
        >>> posterior = dp.Posterior(program, dp.SplitGibbs(num_sweeps=50))

    References:
        Vono et al. 2019 (split Gibbs); Coeurdoux et al. 2024; Wu et al. 2024 (PnP-DM).
    """

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    num_sweeps: int = eqx.field(static=True, default=50)
    noise_share: Float[Array, ""] = eqx.field(converter=as_float, default=0.25)
    num_steps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.num_sweeps < 2:
            raise ValueError(f"num_sweeps={self.num_sweeps} must be 2 or more.")
        check_float("noise_share", self.noise_share, 0.0, math.inf)

    def check(self, target: Target, num_samples: int) -> None:
        """See `AbstractMethod.check`."""
        del num_samples
        only_diffusion_sites(target, self)
        for name, model in target.models().items():
            if not isinstance(model.process, GaussianDiffusion):
                raise ValueError(  # noqa: TRY004 (the program is at fault, not a type)
                    f"SplitGibbs() is for real data, but site {name!r} has "
                    f"{type(model.process).__name__}; use TwistedSMC()."
                )

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

    def prior_sampler(self, target: Target) -> Ancestral:
        """See `AbstractMethod.prior_sampler`."""
        del target
        return Ancestral()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> Int[Array, ""]:
        """See `AbstractMethod.num_denoiser_calls`."""
        return num_samples * jnp.sum(self._levels(target))

    def num_ticks(self, target: Target) -> int:
        """See `AbstractMethod.num_ticks`."""
        del target
        return self.num_sweeps

    def draw(self, key: Array, target: Target, num_samples: int, tick: Any) -> Draws:
        """See `AbstractMethod.draw`."""
        nothing = jnp.zeros(0)
        contexts = target.contexts(nothing)

        def kernel(key: Array, x: Values, t: Array | int) -> Values:
            return reverse_step(key, target, x, t, contexts)

        def prior_step(key: Array, z: Values, t: Array) -> Values:
            """x_0 given z: down the reverse chain from level t."""
            x_t = {
                name: z[name] / jnp.sqrt(1 + variance)
                for name, variance in _variances(target, t).items()
            }
            x_1 = jax.lax.fori_loop(
                0, t - 1, lambda i, x: kernel(jax.random.fold_in(key, i), x, t - i), x_t
            )
            return kernel(jax.random.fold_in(key, t), x_1, 1)

        def likelihood_step(key: Array, x_0: Values, t: Array) -> Values:
            """z given x_0, with the noise of level t between them."""
            variance = flat_like(_variances(target, t), {name: x[0] for name, x in x_0.items()})
            return jax.vmap(
                lambda key, x: draw_given_observations(key, target, x, variance, nothing)
            )(jax.random.split(key, num_samples), x_0)

        def sweep(x_0: Values, inputs: tuple[Array, Array]) -> tuple[Values, None]:
            tick()
            key, t = inputs
            key_z, key_x = jax.random.split(key)
            return prior_step(key_x, likelihood_step(key_z, x_0, t), t), None

        key, key_start = jax.random.split(key)
        x_0 = _near_center(key_start, target, num_samples)
        levels = self._levels(target)
        x_0, _ = jax.lax.scan(sweep, x_0, (jax.random.split(key, len(levels)), levels))
        return unweighted(target, target.pinned(x_0), num_samples)


def _near_center(key: Array, target: Target, num: int) -> Values:
    """`num` events beside the center of the data, where a radius, say, has no slope."""
    return jax.tree.map(lambda x: _OFF_CENTER * x, draw_base(key, target, num))


def _variances(target: Target, t: Int[Array, "..."]) -> Values:
    """tau^2 of each site at level t."""

    def variance(model: Any) -> Array:
        schedule = model.process.schedule
        return schedule.noise()[t] / jnp.maximum(schedule.alpha_bar()[t], _LEAST_SIGNAL)

    return target.map_sites(variance)


def _noise_to_reach(target: Target) -> Float[Array, ""]:
    """The least R_ii / (H H')_ii of the observations at the center of the data; 1 without any."""
    near = jax.tree.map(lambda x: x[0], _near_center(jax.random.key(1), target, 1))
    center, unravel = ravel_pytree(target.pinned(near))
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
