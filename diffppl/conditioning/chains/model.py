"""The reverse chain of the model."""

import dataclasses
from typing import final

from jaxtyping import Array, Float

from ... import samplers
from ..kernels import FinalKernel, GuidedKernel
from ..program import Values
from ..target import Level, Target
from ..twists import AbstractTwist, Twisted
from .base import AbstractChain, Particle


@final
class ModelChain(AbstractChain):
    """The model's own reverse kernels, whose ELBO `fit` maximises; for all kinds of data."""

    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Accept every program."""

    def sampler(self) -> samplers.Ancestral:
        return samplers.Ancestral()

    def num_denoiser_calls(self) -> int:
        return 0  # the estimates are those of the twist

    def select(self, twisted: Twisted) -> Twisted:
        return dataclasses.replace(twisted, linear=None)

    def prepared(self, target: Target, twist: AbstractTwist, level: Level) -> "ModelChain":
        del target, twist, level
        return self

    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        kernel = GuidedKernel(target, particle.x, particle.twisted, level)
        x = kernel.sample(key)
        return x, kernel.log_ratio(x)

    def final_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        kernel = FinalKernel(target, particle.x, particle.twisted, stage, particle.latents)
        x_0 = kernel.sample(key)
        return x_0, kernel.log_ratio(x_0)
