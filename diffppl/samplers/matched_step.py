"""The covariance-matched reverse step: a second-order chain from the denoiser that a model has.

With D = E[x_0 given x_t] and J = sqrt(alpha_bar_t) dD/dx_t its Jacobian, Tweedie's formula says

    Cov[x_0 given x_t] = (1 - alpha_bar_t) / alpha_bar_t  J,

so that the law of total covariance gives the reverse kernel's own, coordinates together:

    Cov[x_{t-1} given x_t] = v_t (I + g J),      g = snr_{t-1} / snr_t - 1,

where v_t is the variance of q(x_{t-1} given x_t, x_0). A model's own kernel keeps the diagonal at
best. Here the kernel has the root of it by the chord from J = 0 to J = I,

    x_{t-1} = b_t D + c_t x_t + sqrt(v_t) (I + (sqrt(1 + g) - 1) J) z,       z ~ N(0, I),
    x_0     = D + tau_1/2 (I + J) z                                          at t = 1,

with tau_t^2 = (1 - alpha_bar_t) / alpha_bar_t: exact where x_0 is unknown and where it is all but
known, and off by g^2/8 J (J - I) between. J multiplies z by one Jacobian-vector product, so a step
costs about twice a plain one. At 100 levels in equal ratios it brings the weights of the modes of a
mixture, which a diagonal kernel misses by several times the floor, to that floor.

References:
    Efron 2011 (Tweedie); Bao et al. 2022 and Boys et al. 2024 (second moments in reverse steps).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..processes import GaussianDiffusion
from ..processes.base import Time

MAX_SNR_RATIO = 1e3
"""Of g: a step that gains more is no small step, and would only magnify a network's errors."""


class MatchedStep(NamedTuple):
    """The numbers of one step, for one site: x_{t-1} = b D + c x_t + `scale` (z + `grow` J_x z).

    J_x = dD/dx_t is the Jacobian as automatic differentiation gives it, without the factor
    sqrt(alpha_bar_t), which is part of `grow` and of `shrink`: I - `shrink` J_x is the inverse of
    I + `grow` J_x, again by the chord. `reach` = sqrt(1 - alpha_bar_t) sqrt(g) is such that
    `reach` J_x (I - `shrink` J_x) is the covariance of x_0 with z.
    """

    x_0: Float[Array, ""]
    x_t: Float[Array, ""]
    scale: Float[Array, ""]
    grow: Float[Array, ""]
    shrink: Float[Array, ""]
    reach: Float[Array, ""]


def matched_step(process: GaussianDiffusion, t: Time) -> MatchedStep:
    """The step from t to t - 1, for t in 2..T."""
    schedule = process.schedule
    b, c, variance = process.coefficients(t)
    log_snr, signal = schedule.log_snr(), jnp.sqrt(schedule.alpha_bar()[t])
    gain = jnp.minimum(jnp.expm1(log_snr[t - 1] - log_snr[t]), MAX_SNR_RATIO)
    # A last level of pure noise knows nothing of x_0, not even how it spreads.
    gain = jnp.where(signal > 0, gain, 0.0)
    root = jnp.sqrt(1 + gain)
    return MatchedStep(
        x_0=b,
        x_t=c,
        scale=jnp.sqrt(variance),
        grow=(root - 1) * signal,
        shrink=(1 - 1 / root) * signal,
        reach=jnp.sqrt(schedule.one_minus_alpha_bar()[t] * gain),
    )


def matched_final_step(process: GaussianDiffusion) -> MatchedStep:
    """The last step, from 1 to 0; there is no further one to shrink for."""
    schedule = process.schedule
    alpha_bar, noise = schedule.alpha_bar()[1], schedule.one_minus_alpha_bar()[1]
    zero, one = jnp.zeros(()), jnp.ones(())
    scale = 0.5 * jnp.sqrt(noise / alpha_bar)
    return MatchedStep(one, zero, scale, jnp.sqrt(alpha_bar), zero, zero)
