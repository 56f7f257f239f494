"""Known answers: priors whose E[x_0 given x_t] has a closed form, used in place of a network.

A model with a known answer has no approximation but its chain, so whatever is built on top of it
(a likelihood, a posterior, a diagnostic) can be held against the truth. With x_t = a x_0 + s eps,
a = sqrt(alpha_bar_t), s^2 = 1 - alpha_bar_t, and a prior N(m, C), C = U diag(l) U^T,

    E[x_0 given x_t]   = m + U diag(a l / (a^2 l + s^2)) U^T (x_t - a m)
    Var[x_0 given x_t] = s^2 diag(U diag(l / (a^2 l + s^2)) U^T),    coordinate by coordinate.

Priors are stated in *model units*: give the model no scaling, or the prior of the scaled data.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..checks import check_instance
from ..schedules import AbstractSchedule
from ..values import as_finite

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


@final
class GaussianDenoiser(AbstractDenoiser):
    """The exact denoiser of x_0 ~ N(mean, covariance).

    Args:
        schedule: the process's own.
        mean: shape `event_shape`.
        covariance: one variance for every coordinate; variances, shape `event_shape`; or a
            matrix over the flattened event, shape `(d, d)`. It may be singular. For a diagonal one
            the reverse kernel is exact.

    Raises:
        TypeError: `schedule` is not a schedule.
        ValueError: `covariance` has the wrong shape, or is not a covariance.

    Example:
        >>> schedule = dp.schedules.Cosine(num_steps=100)
        >>> model = dp.DiffusionModel(
        ...     process=dp.GaussianDiffusion(schedule),
        ...     network=dp.networks.GaussianDenoiser(schedule, jnp.zeros(3), 0.5 * jnp.eye(3)),
        ...     event_shape=(3,),
        ... )
    """

    schedule: AbstractSchedule
    mean: Float[Array, "..."]
    eigenvalues: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"] | None

    def __init__(self, schedule: AbstractSchedule, mean: Numbers, covariance: Numbers) -> None:
        check_schedule(schedule)
        loc = finite("mean", mean)
        eigenvalues, eigenvectors = spectrum(
            "covariance", finite("covariance", covariance), loc.shape
        )
        self.schedule = schedule
        self.mean = jnp.asarray(loc, dtype=float)
        self.eigenvalues = jnp.asarray(eigenvalues, dtype=float)
        self.eigenvectors = None if eigenvectors is None else jnp.asarray(eigenvectors, dtype=float)

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """E[x_0 | x_t] and log(Var[x_0 | x_t] / (1 - alpha_bar_t))."""
        del context
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.noise()[t]
        ratio = self.eigenvalues / (alpha_bar * self.eigenvalues + noise)
        change = jnp.ravel(x_t - jnp.sqrt(alpha_bar) * self.mean)
        if self.eigenvectors is None:
            change = jnp.sqrt(alpha_bar) * ratio * change
        else:
            rotated = change @ self.eigenvectors
            change = self.eigenvectors @ (jnp.sqrt(alpha_bar) * ratio * rotated)
            ratio = self.eigenvectors**2 @ ratio
        mean = self.mean + change.reshape(self.mean.shape)
        return with_variance(mean, ratio)


# What known answers share ---------------------------------------------------------------------


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
