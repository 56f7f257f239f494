"""The analytic denoiser of a Gaussian prior.

With x_t = a x_0 + s eps, a = sqrt(alpha_bar_t), s^2 = 1 - alpha_bar_t, and a prior N(m, C),
C = U diag(l) U^T,

    E[x_0 | x_t]   = m + U diag(a l / (a^2 l + s^2)) U^T (x_t - a m)
    Var[x_0 | x_t] = s^2 diag(U diag(l / (a^2 l + s^2)) U^T),    coordinate by coordinate.

A model with an analytic denoiser has no approximation except its chain, so quantities computed from
it (a likelihood, a posterior, a diagnostic) can be compared with exact values. Priors are stated in
*model units*: use a model without scaling, or the prior of the scaled data.
"""

from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks.arguments import Time
from ..checks.arrays import Numbers, as_double
from ..schedules import AbstractSchedule
from .base import (
    AbstractDenoiser,
    check_schedule,
    eigendecomposition,
    with_variance,
)


@final
class Gaussian(AbstractDenoiser):
    """The exact denoiser of x_0 ~ N(mean, covariance).

    Args:
        schedule: the schedule of the process.
        mean: shape `event_shape`.
        covariance: one variance for every coordinate; variances, shape `event_shape`; or a
            matrix over the flattened event, shape `(d, d)`. It may be singular. If it is diagonal,
            the reverse kernel is exact.

    Raises:
        TypeError: `schedule` is not a schedule.
        ValueError: `covariance` has the wrong shape, or is not a covariance.

    Example:
        >>> schedule = dp.schedules.cosine(num_steps=100)
        >>> model = dp.DiffusionModel(
        ...     process=dp.GaussianDiffusion(schedule),
        ...     network=dp.denoisers.Gaussian(schedule, jnp.zeros(3), 0.5 * jnp.eye(3)),
        ...     event_shape=(3,),
        ... )
    """

    schedule: AbstractSchedule
    mean: Float[Array, "..."]
    eigenvalues: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"] | None

    def __init__(self, schedule: AbstractSchedule, mean: Numbers, covariance: Numbers) -> None:
        check_schedule(schedule)
        loc = as_double("mean", mean)
        eigenvalues, eigenvectors = eigendecomposition(
            "covariance", as_double("covariance", covariance), loc.shape
        )
        self.schedule = schedule
        self.mean = jnp.asarray(loc, dtype=float)
        self.eigenvalues = jnp.asarray(eigenvalues, dtype=float)
        self.eigenvectors = None if eigenvectors is None else jnp.asarray(eigenvectors, dtype=float)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return E[x_0 | x_t] and log(Var[x_0 | x_t] / (1 - alpha_bar_t))."""
        del context
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        # l / (a^2 l + s^2): Var[x_0 | x_t] / s^2 in the basis of eigenvectors.
        ratio = self.eigenvalues / (alpha_bar * self.eigenvalues + noise)
        residual = jnp.ravel(x_t - jnp.sqrt(alpha_bar) * self.mean)
        if self.eigenvectors is None:
            shift = jnp.sqrt(alpha_bar) * ratio * residual
        else:
            rotated = residual @ self.eigenvectors
            shift = self.eigenvectors @ (jnp.sqrt(alpha_bar) * ratio * rotated)
            ratio = self.eigenvectors**2 @ ratio  # the diagonal of U diag(ratio) U^T
        mean = self.mean + shift.reshape(self.mean.shape)
        return with_variance(mean, ratio)
