"""The analytic denoiser of a Gaussian mixture.

With x_t = a x_0 + s eps, a = sqrt(alpha_bar_t), s^2 = 1 - alpha_bar_t, and x_0 from component k,
N(m_k, C_k), with probability w_k, Bayes' rule gives

    P(k | x_t) proportional to w_k N(x_t; a m_k, a^2 C_k + s^2 I)
    E[x_0 | x_t]   = sum_k P(k | x_t) mu_k,    mu_k = E[x_0 | x_t, k]
    Var[x_0 | x_t] = sum_k P(k | x_t) (Var[x_0 | x_t, k] + (mu_k - E[x_0 | x_t])^2)
"""

from typing import final

import jax.numpy as jnp
import numpy as np
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
from .components import (
    AbstractComponents,
    GeneralComponents,
    IsotropicComponents,
    SharedComponents,
)


@final
class GaussianMixture(AbstractDenoiser):
    """The exact denoiser of x_0 ~ sum_k weights[k] N(means[k], covariances[k]).

    Isotropic components, and those with a shared covariance, require matrix multiplications only,
    over any batch of events; others require memory for every pair of event and component.
    Log-densities are compared by differences, so that float32 suffices in hundreds of dimensions.

    Args:
        schedule: the schedule of the process.
        weights: shape `(num_components,)`, summing to 1.
        means: shape `(num_components, *event_shape)`.
        covariances: one variance for all; one each, shape `(num_components,)`; diagonals, shape
            `(num_components, *event_shape)`; or matrices over the flattened event, shape
            `(num_components, d, d)`. A leading axis of 1 in place of `num_components` is one
            covariance for all. Zero gives point masses, as of an empirical prior.

    Raises:
        TypeError: `schedule` is not a schedule.
        ValueError: inconsistent shapes, weights that do not sum to 1, or invalid covariances.

    Example:
        >>> schedule = dp.schedules.log_snr_linear(num_steps=100)
        >>> model = dp.DiffusionModel(
        ...     process=dp.GaussianDiffusion(schedule),
        ...     network=dp.denoisers.GaussianMixture(
        ...         schedule, [0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], 0.1
        ...     ),
        ...     event_shape=(2,),
        ... )
    """

    schedule: AbstractSchedule
    log_weights: Float[Array, " components"]
    components: AbstractComponents

    def __init__(
        self, schedule: AbstractSchedule, weights: Numbers, means: Numbers, covariances: Numbers
    ) -> None:
        check_schedule(schedule)
        locs, covs = as_double("means", means), as_double("covariances", covariances)
        if locs.ndim == 0 or locs.size == 0:
            raise ValueError(
                f"means has shape {locs.shape}; it needs shape (num_components, *event_shape)."
            )
        probs = check_probabilities("weights", weights, locs.shape[0])
        used = probs > 0  # components of weight 0 have log-weights of -inf
        self.schedule = schedule
        self.log_weights = jnp.asarray(np.log(probs[used]), dtype=float)
        self.components = _components(locs, covs, used)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return E[x_0 | x_t] and log(Var[x_0 | x_t] / (1 - alpha_bar_t))."""
        del context
        mean, ratio = self.components.moments(
            jnp.ravel(x_t),
            self.schedule.alpha_bar()[t],
            self.schedule.one_minus_alpha_bar()[t],
            self.log_weights,
        )
        return with_variance(mean.reshape(x_t.shape), ratio)


def check_probabilities(name: str, values: Numbers, number: int) -> np.ndarray:
    """Return probabilities in float64, normalised if their sum is within 1e-4 of 1."""
    probs = as_double(name, values)
    if probs.shape != (number,):
        raise ValueError(f"{name} has shape {probs.shape}; it needs shape {(number,)}.")
    if probs.min() < 0 or abs(probs.sum() - 1) > 1e-4:
        raise ValueError(
            f"{name} must be non-negative and sum to 1, but its sum is {probs.sum():.6g} and its "
            f"minimum {probs.min():.3g}; divide it by its sum."
        )
    return probs / probs.sum()


def _components(means: np.ndarray, covariances: np.ndarray, used: np.ndarray) -> AbstractComponents:
    """Create components of the cheapest form, omitting those of weight 0."""
    number, *rest = means.shape
    flat = means.reshape(number, -1)[used]
    size = flat.shape[1]
    if covariances.shape in ((), (number,)):
        variances = np.broadcast_to(covariances, (number,))[used]
        if variances.min() < 0:
            raise ValueError(f"covariances has a negative variance, {variances.min():.3g}.")
        return IsotropicComponents(flat, variances)
    if covariances.shape in ((1, *rest), (1, size, size)):
        found = eigendecomposition("covariances", covariances[0], tuple(rest))
        return SharedComponents(flat, *found)
    if covariances.shape not in ((number, *rest), (number, size, size)):
        raise ValueError(
            f"covariances has shape {covariances.shape}; {number} components over events of shape "
            f"{tuple(rest)} need shape (), {(number,)}, {(number, *rest)} or "
            f"{(number, size, size)}, or 1 in place of {number}."
        )
    pairs = [
        eigendecomposition("covariances", covariance, tuple(rest))
        for covariance in covariances[used]
    ]
    eigenvalues = np.stack([values for values, _ in pairs])
    vectors = [vectors for _, vectors in pairs if vectors is not None]
    return GeneralComponents(flat, eigenvalues, np.stack(vectors) if vectors else None)
