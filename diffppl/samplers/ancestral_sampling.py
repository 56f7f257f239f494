"""Ancestral sampling of the reverse chain; see `diffppl.model.ancestral`."""

from typing import ClassVar, final

from jaxtyping import Array

from ..model import DiffusionModel
from ..model.ancestral import SamplerState, ancestral_step
from ..processes.base import Time
from .base import AbstractChainSampler


@final
class Ancestral(AbstractChainSampler):
    """Exact draws from the reverse chain, for every kind of data."""

    supports_discrete: ClassVar[bool] = True

    def step(
        self, key: Array, model: DiffusionModel, state: SamplerState, t: Time, context: Array | None
    ) -> SamplerState:
        return state._replace(x=ancestral_step(key, model, state.x, t, context))

    def final_step(
        self, key: Array, model: DiffusionModel, x_1: Array, context: Array | None
    ) -> Array:
        return ancestral_step(key, model, x_1, 1, context)
