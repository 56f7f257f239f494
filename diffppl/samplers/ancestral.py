"""Ancestral sampling of the reverse chain.

    x_T ~ pi,   x_{t-1} ~ p(x_{t-1} | x_t) for t = T..2,   x_0 ~ p(x_0 | x_1)

The draws are exact draws from the model (Sohl-Dickstein et al. 2015, section 2.2), for every kind
of data, at a cost of T network calls.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..checks.arguments import size_field
from ..model import DiffusionModel
from .base import AbstractChainSampler, SamplerState, respaced


@final
class Ancestral(AbstractChainSampler):
    """Exact draws from the reverse chain, for every kind of data.

    Args:
        num_steps: number of levels of the chain to use (`model.respace`); None for all.
    """

    num_steps: int | None = eqx.field(
        static=True, default=None, converter=size_field("num_steps", optional=True)
    )

    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        return respaced(model, self.num_steps)

    def init(self, x_T: Array) -> SamplerState:
        return SamplerState(x_T, None)

    def step(
        self,
        key: Array,
        model: DiffusionModel,
        state: SamplerState,
        t: Int[Array, ""],
        context: Array | None,
    ) -> SamplerState:
        kernel = model.reverse_kernel(state.x, t, context)
        return SamplerState(jnp.asarray(kernel.sample(key)), None)

    def last(
        self, key: Array, model: DiffusionModel, state: SamplerState, context: Array | None
    ) -> Array:
        return jnp.asarray(model.reverse_kernel(state.x, 1, context).sample(key))


def ancestral(
    key: Array, model: DiffusionModel, shape: tuple[int, ...], context: Array | None = None
) -> Array:
    """Draw x_0 in model units, shape `(*shape, *event_shape)`; pure, for use inside programs.

    Args:
        key: a typed JAX key, or a raw one as made by NumPyro's handlers.
        model: the model.
        shape: the batch shape of the draws.
        context: shape `(*context_batch, *context_shape)`, broadcast against `shape`.
    """
    key_base, key_chain = jax.random.split(key)
    x_T = jnp.asarray(model.process.base((*shape, *model.event_shape)).sample(key_base))
    x_0, _ = Ancestral().draw(key_chain, model, x_T, context, keep_path=False)
    return x_0
