"""The interface of problems with known posteriors, and distances between sets of draws.

A problem consists of a NumPyro program, a model with an analytic denoiser, data, and exact answers
in float64: independent posterior draws and log p(y). The remaining error is that of the method and
of the discretised chain.
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
        group: group of problems, as on the command line.
        cell: name of the kind, shared by problems that differ only in their seed.
        seed: seed of the data.
        num_steps: default length of the chain.
        program: the NumPyro program, called as `program(model, *arguments, y=y)`.
        arguments: its further arguments.
        y: the observations.
        variance: prior variance of a coordinate of x_0, averaged over coordinates.
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
        """Return the prior with its analytic denoiser."""

    @abc.abstractmethod
    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """Draw all latent sites independently from their prior."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """Draw all latent sites independently from the posterior."""

    @abc.abstractmethod
    def distance(self, rng: np.random.Generator, draws: Draws) -> dict[str, float]:
        """Return the distances of `draws` from the posterior, by name of the marginal."""

    def floor(self, rng: np.random.Generator, num: int, pairs: int = 10) -> dict[str, float]:
        """Return the mean distance of `num` exact draws, the minimum for any method."""
        found = [self.distance(rng, self.draw(rng, num)) for _ in range(pairs)]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Return W1 between equally many draws, averaged over the trailing axis."""
    return float(np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean())


def sliced_wasserstein(
    rng: np.random.Generator, a: np.ndarray, b: np.ndarray, num_directions: int = 200
) -> float:
    """Return W1 of projections, averaged over random directions; plain W1 in one dimension."""
    if a.shape[1] == 1:
        return wasserstein(a, b)
    directions = rng.normal(size=(a.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    return wasserstein(a @ directions, b @ directions)


def effective_size(weights: np.ndarray) -> float:
    """Return the effective sample size of weighted draws."""
    return float(weights.sum() ** 2 / (weights**2).sum())
