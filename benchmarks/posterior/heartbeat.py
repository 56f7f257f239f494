"""Heartbeats with missing and flipped bits: five states, by enumeration.

Sequences of 20 bits with a 1 in every fifth place (Sohl-Dickstein et al. 2015, section 3.2), of
which six places are observed, each flipped with probability 0.2. The reverse steps are factorised,
so the chain also produces other sequences, whose total mass counts as error.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import diffppl as dp

from .problem import Draws, Problem

STATES = dp.data.heartbeats()
NUM_SEEN = 6
FLIP = 0.2


def seen_bits(model, places, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Bernoulli(jnp.where(x[places] == 1, 1 - FLIP, FLIP)), obs=y)


class Heartbeat(Problem):
    """The posterior of the five phases from some of the bits."""

    group, cell, num_steps = "heartbeat", "heartbeat", 2_000
    program = staticmethod(seen_bits)

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        places = np.sort(rng.choice(20, size=NUM_SEEN, replace=False))
        truth = STATES[rng.choice(5), places]
        self.y = np.where(rng.uniform(size=NUM_SEEN) < FLIP, 1 - truth, truth)
        self.arguments = (jnp.asarray(places),)
        self.variance = 0.16
        agree = np.sum(STATES[:, places] == self.y, axis=1)
        joint = (1 - FLIP) ** agree * FLIP ** (NUM_SEEN - agree) / 5
        self.log_evidence = float(np.log(joint.sum()))
        self.weights = joint / joint.sum()

    def model(self, num_steps: int) -> dp.DiffusionModel:
        """The 2,000 steps of the paper, for methods with fewer steps too."""
        process = dp.BernoulliDiffusion(dp.schedules.reciprocal(max(num_steps, 2_000)), rate=0.2)
        denoiser = dp.denoisers.Enumerated(process, STATES, np.full(5, 1 / 5))
        return dp.DiffusionModel(process, denoiser, (20,))

    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.prior`."""
        return {"x": STATES[rng.choice(5, size=num)]}

    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.draw`."""
        return {"x": STATES[rng.choice(5, p=self.weights, size=num)]}

    def distance(self, rng: np.random.Generator, draws: Draws) -> dict[str, float]:
        """Total variation over the five states and all other sequences."""
        del rng
        shares = np.all(draws["x"][:, None] == STATES, axis=-1).mean(axis=0)
        outside = 1 - shares.sum()
        return {"tv": float(0.5 * (np.abs(shares - self.weights).sum() + outside))}
