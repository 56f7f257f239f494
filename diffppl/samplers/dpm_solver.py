"""DPM-Solver++(2M): the probability flow by a second-order multistep method.

With a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t), lambda_t = log(a_t / s_t) and
D_t = E[x_0 | x_t], the flow between two levels is an integral of D over lambda against an
exponential, evaluated exactly for D linear through its values at this step and the previous one:

    x_{t-1} = (s_{t-1} / s_t) x_t + (a_{t-1} - s_{t-1} a_t / s_t) D
    D = D_t + (D_t - D_{t+1}) h_t / (2 h_{t+1}),     h_t = lambda_{t-1} - lambda_t

One network call per step. The first step has no previous one and uses D_T alone; a chain with
alpha_bar_T = 0 has infinite h_T, so its second step uses D_{T-1} alone. The final step, from level
1 to zero noise, is the limit of the method, E[x_0 | x_1].

References:
    Lu et al. 2022, "DPM-Solver++", algorithm 2.
"""

from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array

from ..model import DiffusionModel
from ..model.ancestral import SamplerState
from ..processes.base import Time
from .base import AbstractChainSampler


@final
class DPMSolver(AbstractChainSampler):
    """Deterministic approximate sampling of real data in few steps: `num_steps` of 10 to 30."""

    supports_discrete: ClassVar[bool] = False

    def step(
        self, key: Array, model: DiffusionModel, state: SamplerState, t: Time, context: Array | None
    ) -> SamplerState:
        del key
        schedule = model.process.schedule
        a, s = jnp.sqrt(schedule.alpha_bar()), jnp.sqrt(schedule.one_minus_alpha_bar())
        half_log_snr = 0.5 * schedule.log_snr()
        denoised = model.denoise(state.x, t, context)
        # h_t and h_{t+1}; half the log-SNR is lambda.
        h = half_log_snr[t - 1] - half_log_snr[t]
        h_previous = half_log_snr[t] - half_log_snr[jnp.minimum(t + 1, model.num_steps)]
        has_previous = (t < model.num_steps) & (h_previous > 0)  # levels may coincide
        slope = jnp.where(has_previous, h / (2 * jnp.where(has_previous, h_previous, 1.0)), 0.0)
        extrapolated = denoised + slope * (denoised - state.memory)  # D_{t+1}
        ratio = s[t - 1] / s[t]
        x = ratio * state.x + (a[t - 1] - ratio * a[t]) * extrapolated
        return SamplerState(x, denoised)

    def final_step(
        self, key: Array, model: DiffusionModel, x_1: Array, context: Array | None
    ) -> Array:
        del key
        return model.denoise(x_1, 1, context)
