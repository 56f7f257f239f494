"""The interface of analytic denoisers, and what their implementations share."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks.arguments import Time, check_instance
from ..schedules import AbstractSchedule


class AbstractDenoiser(eqx.Module):
    """An analytic denoiser in place of a network, with the raw output of `predictions.Data()`.

    For real data the output has a leading axis of two: E[x_0 | x_t], in model units, and
    log(Var[x_0 | x_t] / (1 - alpha_bar_t)), coordinate by coordinate, as in
    `Data(LearnedVariance())`: each coordinate of the reverse kernel then has its exact mean and
    variance. For bits it is log-odds; for categories log-probabilities on a trailing axis. A model
    with an analytic denoiser has this prediction by default.
    """

    @abc.abstractmethod
    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event; the context is ignored."""


def with_variance(mean: Array, ratio: Array) -> Float[Array, "2 ..."]:
    """Stack a mean and the logarithm of `ratio`, which is Var[x_0 | x_t] / (1 - alpha_bar_t)."""
    # The smallest normal number instead of 0, as of point masses, keeps the logarithm finite.
    floor = jnp.finfo(ratio.dtype).tiny
    log_ratio = jnp.log(jnp.maximum(ratio, floor)).reshape(mean.shape)
    return jnp.stack([mean, log_ratio])


def check_schedule(schedule: object) -> None:
    """Raise TypeError unless `schedule` is a schedule (a process is not)."""
    remedy = ", such as the process.schedule of the model that uses the denoiser"
    check_instance("schedule", schedule, AbstractSchedule, remedy=remedy)


def eigendecomposition(
    name: str, covariance: np.ndarray, event_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return eigenvalues and eigenvectors (None if diagonal) of a covariance of flat events."""
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
    # Singular matrices are allowed; slightly negative eigenvalues are rounding errors.
    if eigenvalues.min() < -1e-6 * np.abs(eigenvalues).max():
        raise ValueError(
            f"{name} is not positive semidefinite: its smallest eigenvalue is "
            f"{eigenvalues.min():.3g}."
        )
    return np.maximum(eigenvalues, 0.0), eigenvectors
