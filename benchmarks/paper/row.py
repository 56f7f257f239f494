"""What a row of the tables says, and how large the run is that fills it."""

import dataclasses
import enum
import math
import pathlib
import time
from typing import Any

import equinox as eqx
import jax
import numpy as np

import diffppl as dp

NATS = math.log(2)  # in a bit


class Size(enum.Enum):
    """How long a row may take."""

    TINY = "tiny"
    """Seconds, to see that it runs."""

    SMALL = "small"
    """About a quarter of an hour on two cores."""

    FULL = "full"
    """Hours on an accelerator."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command line asks for."""

    size: Size
    output: pathlib.Path
    folder: pathlib.Path | None  # where MNIST, CIFAR-10 and bark are, as .npz
    seed: int = 0

    def choose(self, tiny: Any, small: Any, full: Any) -> Any:
        """One of three, by the size of the run."""
        return {Size.TINY: tiny, Size.SMALL: small, Size.FULL: full}[self.size]

    def key(self, name: str) -> jax.Array:
        """A key for each row."""
        return jax.random.fold_in(jax.random.key(self.seed), sum(name.encode()))

    def checkpoints(self, name: str) -> dp.Checkpoints | None:
        """A killed run goes on where it was; tiny ones start anew."""
        if self.size is Size.TINY:
            return None
        return dp.Checkpoints(self.output / "paper_runs" / f"{name}_{self.size.value}", keep=1)


@dataclasses.dataclass
class Row:
    """A line of a table; `value` and what it is compared with are in `unit`."""

    name: str
    unit: str
    paper: str
    value: float
    error: float
    null: float | None
    compared: dict[str, float]
    num_steps: int
    parameters: int
    iterations: int
    seconds: float
    data: str
    size: str = ""
    device: str = ""


def num_parameters(model: dp.DiffusionModel) -> int:
    """How many numbers were trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def timed_fit(run: Run, name: str, model: dp.DiffusionModel, data: Any, **settings: Any) -> Any:
    """`dp.fit`, and its seconds; those of a run that was taken up again count from there."""
    start = time.perf_counter()
    result = dp.fit(run.key(name), model, data, checkpoints=run.checkpoints(name), **settings)
    return result.model, time.perf_counter() - start


def in_bits(nats: Any, count: int = 1) -> tuple[float, float]:
    """Mean and standard error of nats per event, in bits per `count`th of one."""
    values = np.asarray(nats, np.float64) / NATS / count
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
