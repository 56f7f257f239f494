"""Sampling with covariance-matched steps; see `diffppl.samplers.matched_step`."""

from typing import ClassVar, final

import jax
from jaxtyping import Array

from ..model import DiffusionModel
from ..model.ancestral import SamplerState
from ..processes.base import Time
from .base import AbstractChainSampler
from .matched_step import MatchedStep, matched_final_step, matched_step


@final
class CovarianceMatched(AbstractChainSampler):
    """Second-order chain, with noise correlated according to the Jacobian of E[x_0 | x_t].

    Takes as many steps as `Ancestral()` at about twice its cost, and is much closer to the
    distribution whose denoiser the network is: a small number of steps does not distort the weights
    of modes. It is not the chain whose ELBO `fit` maximises. Real data only.

    Example:
        >>> x = dp.sample(key, model, (1_000,), sampler=dp.samplers.CovarianceMatched())
    """

    supports_discrete: ClassVar[bool] = False

    def step(
        self, key: Array, model: DiffusionModel, state: SamplerState, t: Time, context: Array | None
    ) -> SamplerState:
        step = matched_step(model.process, t)  # pyright: ignore
        return state._replace(x=_draw(key, model, step, state.x, t, context))

    def final_step(
        self, key: Array, model: DiffusionModel, x_1: Array, context: Array | None
    ) -> Array:
        step = matched_final_step(model.process)  # pyright: ignore
        return _draw(key, model, step, x_1, 1, context)


def _draw(
    key: Array, model: DiffusionModel, step: MatchedStep, x_t: Array, t: Time, context: Array | None
) -> Array:
    """Draw x_{t-1} = b D + c x_t + `scale` (z + `grow` J_x z)."""
    z = jax.random.normal(key, x_t.shape, x_t.dtype)
    mean, jacobian_z = jax.jvp(lambda x: model.denoise(x, t, context), (x_t,), (z,))
    return step.x_0 * mean + step.x_t * x_t + step.scale * (z + step.grow * jacobian_z)
