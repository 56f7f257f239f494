"""The interface of reverse chains."""

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from ... import samplers
from ..program import Values
from ..target import Level, Target
from ..twists import AbstractTwist, Twisted


class Particle(NamedTuple):
    """One particle: every diffusion site at its time, the twist there, and the latents."""

    x: Values
    twisted: Twisted
    latents: Float[Array, " p"]


class AbstractChain(eqx.Module):
    """A reverse chain p and the guided kernel q of each of its steps, for one particle.

    To add one, subclass this, mark it `typing.final`, and add a row to the tests' registry.
    """

    @abc.abstractmethod
    def check(self, target: Target, twist: AbstractTwist) -> None:
        """Raise ValueError for an unsupported program or twist; uses abstract values only."""

    @abc.abstractmethod
    def sampler(self) -> samplers.AbstractSampler:
        """Return the sampler of the chain without observations."""

    @abc.abstractmethod
    def num_denoiser_calls(self) -> int:
        """Return the denoiser calls of one step, besides those of the twist."""

    @abc.abstractmethod
    def select(self, twisted: Twisted) -> Twisted:
        """Return the parts of a twist that the steps use; the others need not be stored."""

    @abc.abstractmethod
    def prepared(self, target: Target, twist: AbstractTwist, level: Level) -> "AbstractChain":
        """Return the chain with everything that the particles share in a step from `level`.

        A Python integer t = 1 selects the final step.
        """

    @abc.abstractmethod
    def step(
        self, key: Array, target: Target, particle: Particle, level: Level
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_{t-1} of the running stage from q; also return log p(x_{t-1} | x_t) - log q."""

    @abc.abstractmethod
    def final_step(
        self, key: Array, target: Target, particle: Particle, stage: int
    ) -> tuple[Values, Float[Array, ""]]:
        """Draw x_0 of the running stage from q; also return log p(x_0 | x_1) - log q."""
