"""Denoising diffusion implicit models: the reverse chain with reduced noise, or none.

With a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t), D = E[x_0 | x_t] and the estimated noise
eps = (x_t - a_t D) / s_t, for t = T..2

    x_{t-1} = a_{t-1} D + sqrt(s_{t-1}^2 - sigma_t^2) eps + sqrt(sigma_t^2 + eta^2 b^2 w) z
    sigma_t^2 = eta^2 beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t),     z ~ N(0, I)

where w is the model's Var[x_0 | x_t] and b = a_{t-1} - a_t sqrt(s_{t-1}^2 - sigma_t^2) / s_t. At
eta = 1 this is the reverse kernel, and at eta = 0 a deterministic first-order solver of the
probability flow. (In the paper w = 0; Bao et al. include w at every eta.)

References:
    Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", equations 12 and 16.
    Bao, Li, Zhu and Zhang 2022, "Analytic-DPM", section 4.
"""

from typing import ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ..checks.arguments import check_float
from ..model import DiffusionModel
from ..model.ancestral import SamplerState
from ..processes.base import Time
from .base import AbstractChainSampler


@final
class DDIM(AbstractChainSampler):
    """Approximate sampling of real data in fewer steps.

    The final step is E[x_0 | x_1] if `eta` is 0, so that x_0 is a function of x_T, and a draw from
    p(x_0 | x_1) otherwise, so that `eta=1` is ancestral sampling.

    Args:
        eta: from 0, deterministic, to 1, ancestral sampling.
    """

    supports_discrete: ClassVar[bool] = False
    eta: ArrayLike

    def __init__(self, eta: float = 0.0) -> None:
        eta = check_float("eta", eta, 0.0, 1.0, closed=True)
        self.eta = np.asarray(eta, dtype=np.float64)  # an array: a new value does not recompile

    def step(
        self, key: Array, model: DiffusionModel, state: SamplerState, t: Time, context: Array | None
    ) -> SamplerState:
        schedule, x = model.process.schedule, state.x
        alpha_bar, noise = schedule.alpha_bar(), schedule.one_minus_alpha_bar()
        estimate, eta2 = model.estimate(x, t, context), jnp.asarray(self.eta) ** 2
        # The symbols of the module's docstring: a_t, a_{t-1}, sqrt(s_{t-1}^2 - sigma_t^2).
        a, a_next = jnp.sqrt(alpha_bar[t]), jnp.sqrt(alpha_bar[t - 1])
        eps = (x - a * estimate.mean) / jnp.sqrt(noise[t])
        sigma2 = eta2 * schedule.beta()[t] * noise[t - 1] / noise[t]
        eps_scale = jnp.sqrt(jnp.maximum(noise[t - 1] - sigma2, 0.0))
        b = a_next - a * eps_scale / jnp.sqrt(noise[t])
        scale = jnp.sqrt(sigma2 + eta2 * b**2 * estimate.variance)
        z = jax.random.normal(key, x.shape, x.dtype)
        return state._replace(x=a_next * estimate.mean + eps_scale * eps + scale * z)

    def final_step(
        self, key: Array, model: DiffusionModel, x_1: Array, context: Array | None
    ) -> Array:
        drawn = model.reverse_kernel(x_1, 1, context).sample(key)
        return jnp.where(jnp.asarray(self.eta) > 0, drawn, model.denoise(x_1, 1, context))
