"""What a problem with a known posterior must give, and distances between draws.

A problem is a NumPyro program, a model whose denoiser is exact, data, and the truth in float64:
independent posterior draws and log p(y). What a method misses is then its own, or the chain's.
"""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

import diffppl as dp

Draws = dict[str, np.ndarray]


class Problem(abc.ABC):
    """One data set of one kind of problem.

    Attributes:
        group: which of the groups of the command line.
        cell: name of the kind, shared by problems that differ in their seed alone.
        seed: which of them.
        num_steps: length of the chain unless another is asked for.
        program: the NumPyro program, called as `program(model, *arguments, y=y)`.
        arguments: what it needs beside the model.
        y: the observations.
        variance: of a coordinate of x_0 under the prior, on average.
        log_evidence: log p(y) in nats.
    """

    group: str
    cell: str
    seed: int
    num_steps: int
    program: Callable[..., None]
    arguments: tuple[Any, ...]
    y: np.ndarray
    variance: float
    log_evidence: float

    @abc.abstractmethod
    def model(self, num_steps: int) -> dp.DiffusionModel:
        """The prior with its exact denoiser."""

    @abc.abstractmethod
    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """Independent draws of all latent sites from their prior."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """Independent draws of all latent sites from the posterior."""

    @abc.abstractmethod
    def distance(self, rng: np.random.Generator, draws: Draws) -> dict[str, float]:
        """How far `draws` lie from the posterior, by name of what is compared."""

    def floor(self, rng: np.random.Generator, num: int, pairs: int = 10) -> dict[str, float]:
        """The distance of `num` exact draws: the least that any method can show."""
        found = [self.distance(rng, self.draw(rng, num)) for _ in range(pairs)]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """W1 between as many draws of one number."""
    return float(np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean())


def sliced_wasserstein(
    rng: np.random.Generator, a: np.ndarray, b: np.ndarray, num_directions: int = 200
) -> float:
    """W1 of projections, averaged over random directions; of the numbers themselves in 1-D."""
    if a.shape[1] == 1:
        return wasserstein(a, b)
    directions = rng.normal(size=(a.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    return wasserstein(a @ directions, b @ directions)


def effective_size(weights: np.ndarray) -> float:
    """Effective number of weighted draws."""
    return float(weights.sum() ** 2 / (weights**2).sum())
