"""What every analytic denoiser shares."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..checks.arguments import check_instance
from ..checks.arrays import as_finite
from ..schedules import AbstractSchedule

Numbers = ArrayLike | Sequence


class AbstractDenoiser(eqx.Module):
    """An exact answer in place of a network. Its raw output is what `Data()` means.

    For real data a leading axis of two: E[x_0 | x_t], in model units, and
    log(Var[x_0 | x_t] / (1 - alpha_bar_t)), coordinate by coordinate, as `Data(LearnedVariance())`
    has it: each coordinate of the reverse kernel then has its exact mean and variance. For bits
    log-odds; for categories log-probabilities on a trailing axis. A model given one chooses that
    prediction by itself.
    """

    @abc.abstractmethod
    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """The raw output for one event; a context says nothing."""


def with_variance(mean: Array, ratio: Array) -> Float[Array, "2 ..."]:
    """Stack a mean and the log of Var / (1 - alpha_bar_t), kept finite where that is 0."""
    floor = jnp.finfo(ratio.dtype).tiny
    log_ratio = jnp.log(jnp.maximum(ratio, floor)).reshape(mean.shape)
    return jnp.stack([mean, log_ratio])


def check_schedule(schedule: Any) -> None:
    """Refuse what is not a schedule, a process above all."""
    remedy = ", such as the process.schedule of the model that this answer is for"
    check_instance("schedule", schedule, AbstractSchedule, remedy=remedy)


def finite(name: str, values: Numbers) -> np.ndarray:
    """Numbers in float64, or an error that names them."""
    return np.asarray(as_finite(name, values), dtype=np.float64)


def spectrum(
    name: str, covariance: np.ndarray, event_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Eigenvalues and eigenvectors (None if diagonal) of a covariance over a flattened event."""
    size = math.prod(event_shape)
    if covariance.shape in ((), event_shape):
        eigenvalues, eigenvectors = np.broadcast_to(covariance, event_shape).reshape(size), None
    elif covariance.shape == (size, size):
        if not np.allclose(covariance, covariance.T):
            raise ValueError(f"{name} is not symmetric.")
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    else:
        raise ValueError(
            f"{name} has shape {covariance.shape}; events of shape {event_shape} need a number, "
            f"variances of shape {event_shape} or a matrix of shape {(size, size)}."
        )
    # Singular matrices are welcome; a little below zero is rounding.
    if eigenvalues.min() < -1e-6 * np.abs(eigenvalues).max():
        raise ValueError(f"{name} is not positive semidefinite: it has {eigenvalues.min():.3g}.")
    return np.maximum(eigenvalues, 0.0), eigenvectors
