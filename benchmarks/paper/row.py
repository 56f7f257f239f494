"""Rows of the tables, and the settings of a run."""

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
    """The size of a run."""

    TINY = "tiny"
    """Seconds; a test that the script runs."""

    SMALL = "small"
    """About a quarter of an hour on two cores."""

    FULL = "full"
    """Hours on an accelerator."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of the command line."""

    size: Size
    output: pathlib.Path
    folder: pathlib.Path | None  # where MNIST, CIFAR-10 and bark are, as .npz
    seed: int = 0

    def choose(self, tiny: Any, small: Any, full: Any) -> Any:
        """Return one of three settings, by the size of the run."""
        return {Size.TINY: tiny, Size.SMALL: small, Size.FULL: full}[self.size]

    def key(self, name: str) -> jax.Array:
        """Return the key of a row."""
        return jax.random.fold_in(jax.random.key(self.seed), sum(name.encode()))

    def checkpoints(self, name: str) -> dp.Checkpoints | None:
        """Return where a row is checkpointed, so that it can resume; None for a tiny run."""
        if self.size is Size.TINY:
            return None
        return dp.Checkpoints(self.output / "paper_runs" / f"{name}_{self.size.value}", keep=1)


@dataclasses.dataclass
class Row:
    """A line of a table; `value`, `error`, `null` and `compared` are in `unit`."""

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
    """Count the trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def timed_fit(run: Run, name: str, model: dp.DiffusionModel, data: Any, **settings: Any) -> Any:
    """Run `dp.fit`; return the model and the seconds, since the last start if it was resumed."""
    start = time.perf_counter()
    result = dp.fit(run.key(name), model, data, checkpoints=run.checkpoints(name), **settings)
    return result.model, time.perf_counter() - start


def in_bits(nats: Any, count: int = 1) -> tuple[float, float]:
    """Return the mean and standard error of nats per event, in bits per 1/`count` of an event."""
    values = np.asarray(nats, np.float64) / NATS / count
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
