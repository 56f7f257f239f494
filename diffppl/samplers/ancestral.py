"""Ancestral sampling: the reverse chain itself, drawn step by step.

    x_T ~ pi,   x_{t-1} ~ p(x_{t-1} given x_t) for t = T..2,   x_0 ~ p(x_0 given x_1)

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
    """The reverse chain as it is; exact, and for every kind of data.

    Args:
        num_steps: read the chain at so many of its levels (`model.respace`); None for all.
    """

    num_steps: int | None = eqx.field(
        static=True, default=None, converter=size_field("num_steps", optional=True)
    )

    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        """The model, re-read at `num_steps`."""
        return respaced(model, self.num_steps)

    def init(self, x_T: Array) -> SamplerState:
        """Nothing to remember."""
        return SamplerState(x_T, None)

    def step(
        self,
        key: Array,
        model: DiffusionModel,
        state: SamplerState,
        t: Int[Array, ""],
        context: Array | None,
    ) -> SamplerState:
        """A draw from p(x_{t-1} given x_t)."""
        kernel = model.reverse_kernel(state.x, t, context)
        return SamplerState(jnp.asarray(kernel.sample(key)), None)

    def last(
        self, key: Array, model: DiffusionModel, state: SamplerState, context: Array | None
    ) -> Array:
        """A draw from p(x_0 given x_1)."""
        return jnp.asarray(model.reverse_kernel(state.x, 1, context).sample(key))


def ancestral(
    key: Array, model: DiffusionModel, shape: tuple[int, ...], context: Array | None = None
) -> Array:
    """Draw x_0 in model units, shape `(*shape, *event_shape)`; pure, to be used inside programs.

    Args:
        key: a typed JAX key, or an old-style one, as NumPyro's handlers still make them.
        model: the model.
        shape: how many draws.
        context: shape `(*context_batch, *context_shape)`, broadcast against `shape`.
    """
    key_base, key_chain = jax.random.split(key)
    x_T = jnp.asarray(model.process.base((*shape, *model.event_shape)).sample(key_base))
    x_0, _ = Ancestral().draw(key_chain, model, x_T, context, keep_path=False)
    return x_0
