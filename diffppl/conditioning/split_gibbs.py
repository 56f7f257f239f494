"""Split Gibbs sampling: a likelihood step and a denoising step in turn, at falling noise.

The posterior is enlarged by a copy z of x_0 that the observations see, bound to it by

    p(x_0, z given y) proportional to p(x_0) N(z; x_0, tau^2 I) r(z).

Given x_0, z is a normal conditioned on the observations, linearised at x_0; given z, x_0 is what
the reverse chain makes of z as a state at noise-to-signal tau. tau falls from the chain's top level
to its lowest, where z and x_0 are nearly one.
"""

from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..processes import GaussianDiffusion
from ..samplers import Ancestral
from .method import AbstractMethod, Draws, Exactness, only_diffusion_sites, reverse_step, unweighted
from .program import Values
from .target import Target
from .twists.base import flat_like
from .twists.gaussian import draw_given_observations

_LEAST_SIGNAL = 1e-6  # of alpha_bar: a chain may end in pure noise


@final
class SplitGibbs(AbstractMethod):
    """Alternates likelihood and denoising; no derivative of the network. Approximate.

    For large images and many observations: a sweep costs one solve by conjugate gradients with the
    program's own derivatives, and a reverse chain from the sweep's level down. Draws are
    independent runs.

    *Bias*. At noise-to-signal tau the observations H x + N(0, R) count as if their variance were
    R + tau^2 H H', and where tau^2 is far below R a sweep hardly moves x_0: what was drawn at
    higher noise stays. Best is a `lowest` whose tau is a quarter of the observations' noise, and
    many sweeps. For N(0, 1) seen once as 1 with variance 1 the defaults give mean 0.43 and variance
    0.54 for 0.5 and 0.5, and 200 sweeps down to level 20 give 0.49 and 0.50
    (`schedules.LogSNRLinear(100, (0.01, 50))`). The weights of modes are as they were chosen at
    high noise: on the problems that `Guidance` describes, 200 sweeps leave a total variation of
    0.01 to 0.7. Other than linear normal observations are linearised; `numpyro.factor` and sites
    without moments move z along their gradient, by tau at most. There is no evidence.

    Args:
        num_sweeps: how often the two steps alternate, 2 or more.
        lowest: the level of the last half of the sweeps, between 1 and `num_steps`; larger ones
            mix faster and are more biased.
        num_steps: read the chain at fewer steps; None keeps them all.

    Example:
        >>> posterior = dp.Posterior(program, dp.SplitGibbs(num_sweeps=50))

    References:
        Vono et al. 2019 (split Gibbs); Coeurdoux et al. 2024; Wu et al. 2024 (PnP-DM).
    """

    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    num_sweeps: int = eqx.field(static=True, default=50)
    lowest: int = eqx.field(static=True, default=5)
    num_steps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name, least in (("num_sweeps", 2), ("lowest", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more.")

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
        if self.lowest > target.num_steps:
            raise ValueError(
                f"lowest={self.lowest} is no level of a chain of {target.num_steps} steps."
            )

    def _levels(self, target: Target) -> np.ndarray:
        """The level of each sweep: evenly down, then at the lowest."""
        falling = (self.num_sweeps + 1) // 2
        down = np.linspace(target.num_steps, self.lowest, falling).round().astype(int)
        return np.concatenate([down, np.full(self.num_sweeps - falling, self.lowest)])

    def prior_sampler(self, target: Target) -> Ancestral:
        """See `AbstractMethod.prior_sampler`."""
        del target
        return Ancestral()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> int:
        """See `AbstractMethod.num_denoiser_calls`."""
        return num_samples * int(self._levels(target).sum())

    def num_ticks(self, target: Target) -> int:
        """See `AbstractMethod.num_ticks`."""
        del target
        return self.num_sweeps

    def draw(self, key: Array, target: Target, num_samples: int, tick: Any) -> Draws:
        """See `AbstractMethod.draw`."""
        nothing = jnp.zeros(0)
        contexts = target.contexts(nothing)

        def at(t: Array) -> Values:
            """tau^2 of each site at level t."""

            def variance(model: Any) -> Array:
                schedule = model.process.schedule
                return schedule.noise()[t] / jnp.maximum(schedule.alpha_bar()[t], _LEAST_SIGNAL)

            return target.map_sites(variance)

        def kernel(key: Array, x: Values, t: Array | int) -> Values:
            return reverse_step(key, target, x, t, contexts)

        def prior_step(key: Array, z: Values, t: Array) -> Values:
            """x_0 given z: down the reverse chain from level t."""
            x_t = {name: z[name] / jnp.sqrt(1 + variance) for name, variance in at(t).items()}
            x_1 = jax.lax.fori_loop(
                0, t - 1, lambda i, x: kernel(jax.random.fold_in(key, i), x, t - i), x_t
            )
            return kernel(jax.random.fold_in(key, t), x_1, 1)

        def likelihood_step(key: Array, x_0: Values, t: Array) -> Values:
            """z given x_0, with the noise of level t between them."""
            variance = flat_like(at(t), {name: x[0] for name, x in x_0.items()})
            return jax.vmap(
                lambda key, x: draw_given_observations(key, target, x, variance, nothing)
            )(jax.random.split(key, num_samples), x_0)

        def sweep(x_0: Values, inputs: tuple[Array, Array]) -> tuple[Values, None]:
            tick()
            key, t = inputs
            key_z, key_x = jax.random.split(key)
            return prior_step(key_x, likelihood_step(key_z, x_0, t), t), None

        x_0 = {
            name: jnp.zeros((num_samples, *site.shape))
            for name, site in target.sites.diffusion.items()
        }
        levels = jnp.asarray(self._levels(target))
        x_0, _ = jax.lax.scan(sweep, x_0, (jax.random.split(key, len(levels)), levels))
        return unweighted(target, target.pinned(x_0), num_samples)
