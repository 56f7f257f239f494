"""Ancestral sampling of the reverse chain; see `diffppl.model.ancestral`."""

from typing import final

import equinox as eqx
from jaxtyping import Array, Int

from ..checks.arguments import size_field
from ..model import DiffusionModel, respaced
from ..model.ancestral import SamplerState, ancestral_step
from .base import AbstractChainSampler


@final
class Ancestral(AbstractChainSampler):
    """Exact draws from the reverse chain, for every kind of data.

    Args:
        num_steps: number of levels of the chain to use (`respaced`); None for all.
    """

    num_steps: int | None = eqx.field(
        static=True, default=None, converter=size_field("num_steps", optional=True)
    )

    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        return respaced(model, self.num_steps)

    def init(self, x_T: Array) -> SamplerState:
        return SamplerState(x_T)

    def step(
        self,
        key: Array,
        model: DiffusionModel,
        state: SamplerState,
        t: Int[Array, ""],
        context: Array | None,
    ) -> SamplerState:
        return SamplerState(ancestral_step(key, model, state.x, t, context))

    def last(
        self, key: Array, model: DiffusionModel, state: SamplerState, context: Array | None
    ) -> Array:
        return ancestral_step(key, model, state.x, 1, context)
