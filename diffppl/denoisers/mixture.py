"""The analytic denoiser of a Gaussian mixture.

With x_t = a x_0 + s eps, a = sqrt(alpha_bar_t), s^2 = 1 - alpha_bar_t, and x_0 from component k,
N(m_k, C_k), with probability w_k, Bayes' rule gives

    P(k | x_t) proportional to w_k N(x_t; a m_k, a^2 C_k + s^2 I)
    E[x_0 | x_t]   = sum_k P(k | x_t) mu_k,    mu_k = E[x_0 | x_t, k]
    Var[x_0 | x_t] = sum_k P(k | x_t) (Var[x_0 | x_t, k] + (mu_k - E[x_0 | x_t])^2)

Log-densities of high-dimensional components are large and nearly equal, so float32 loses their
differences. Isotropic components, C_k = v_k I, are compared with the nearest one, n, instead: with
the residual r = x_t - a m_n, and S_k = a^2 v_k + s^2,

    |x_t - a m_k|^2 = |r|^2 - 2 a r.(m_k - m_n) + a^2 |m_k - m_n|^2,

whose last term is a table, computed in float64, and whose second is a matrix multiplication over
any batch of events. The terms in |r|^2 combine to (1 / S_n - 1 / S_k) |r|^2 / 2 in the logits.
"""

import abc
from typing import final

import equinox as eqx
import jax
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


class AbstractComponents(eqx.Module):
    """The components of a mixture over flat events, with one form of covariance."""

    @abc.abstractmethod
    def moments(
        self, x_t: Float[Array, " d"], alpha_bar: Array, noise: Array, log_weights: Array
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Return E[x_0 | x_t], and Var[x_0 | x_t] / (1 - alpha_bar_t)."""


@final
class IsotropicComponents(AbstractComponents):
    """Covariances v_k I, possibly equal or 0, which need matrix multiplications only."""

    center: Float[Array, " d"]
    means: Float[Array, "components d"]  # less the center
    distances: Float[Array, "components components"]  # squared, between means
    variances: Float[Array, " components"]

    def __init__(self, means: np.ndarray, variances: np.ndarray) -> None:
        center = means.mean(axis=0)
        distances = np.stack([np.sum((means - mean) ** 2, axis=1) for mean in means])
        self.center = jnp.asarray(center, dtype=float)
        self.means = jnp.asarray(means - center, dtype=float)
        self.distances = jnp.asarray(distances, dtype=float)
        self.variances = jnp.asarray(variances, dtype=float)

    def moments(
        self, x_t: Array, alpha_bar: Array, noise: Array, log_weights: Array
    ) -> tuple[Array, Array]:
        a, means, size = jnp.sqrt(alpha_bar), self.means, x_t.size
        x_t = x_t - a * self.center
        spread = alpha_bar * self.variances + noise  # S_k
        # The likeliest component n, from log-densities that float32 may round: the results below
        # hold for any n, and are accurate for one that is near x_t.
        squares = x_t @ x_t - 2 * a * (means @ x_t) + alpha_bar * jnp.sum(means**2, axis=1)
        approx_logits = log_weights - 0.5 * (squares / spread + size * jnp.log(spread))
        nearest = jnp.argmax(jax.lax.stop_gradient(approx_logits))
        nearest_mean, nearest_spread = means[nearest], spread[nearest]

        # Log-densities of the components relative to that of n.
        residual = x_t - a * nearest_mean
        projections = means @ residual - nearest_mean @ residual
        spread_diff = alpha_bar * (self.variances - self.variances[nearest])
        logits = (a * projections - 0.5 * alpha_bar * self.distances[nearest]) / spread
        logits += 0.5 * spread_diff / (nearest_spread * spread) * (residual @ residual)
        logits += log_weights - 0.5 * size * jnp.log1p(spread_diff / nearest_spread)
        probs = jax.nn.softmax(logits)

        # mu_k = gain_k x_t + shrinkage_k m_k, centered, where a gain_k + shrinkage_k = 1.
        gain, shrinkage = a * self.variances / spread, noise / spread
        mean = self.center + (probs @ gain) * x_t + (probs * shrinkage) @ means

        # Variance of the mu_k, from their first and second moments around mu_n,
        #     mu_k - mu_n = (gain_k - gain_n) r + shrinkage_k (m_k - m_n).
        # Component n has no term, so that nothing cancels when its probability is nearly 1.
        others = jnp.where(jnp.arange(probs.size) == nearest, 0.0, probs)
        gain_diff = gain - gain[nearest]
        weights = jnp.stack(
            [others * shrinkage, others * shrinkage * gain_diff, others * shrinkage**2]
        )
        offsets = weights @ means - weights.sum(axis=1, keepdims=True) * nearest_mean
        first = (others @ gain_diff) * residual + offsets[0]
        second = (
            (others @ gain_diff**2) * residual**2
            + 2 * residual * offsets[1]
            + weights[2] @ means**2
            - nearest_mean * (2 * offsets[2] + weights[2].sum() * nearest_mean)
        )
        between = jnp.maximum(second - first**2, 0.0) / noise
        return mean, probs @ (self.variances / spread) + between


@final
class GeneralComponents(AbstractComponents):
    """Diagonal covariances, or full ones by their eigenvectors.

    Computations are over all pairs of component and event.
    """

    means: Float[Array, "components d"]
    eigenvalues: Float[Array, "components d"]
    eigenvectors: Float[Array, "components d d"] | None

    def __init__(
        self, means: np.ndarray, eigenvalues: np.ndarray, eigenvectors: np.ndarray | None
    ) -> None:
        self.means = jnp.asarray(means, dtype=float)
        self.eigenvalues = jnp.asarray(eigenvalues, dtype=float)
        self.eigenvectors = None if eigenvectors is None else jnp.asarray(eigenvectors, dtype=float)

    def moments(
        self, x_t: Array, alpha_bar: Array, noise: Array, log_weights: Array
    ) -> tuple[Array, Array]:
        a = jnp.sqrt(alpha_bar)
        spread = alpha_bar * self.eigenvalues + noise
        ratio = self.eigenvalues / spread
        residual = x_t - a * self.means
        if self.eigenvectors is not None:
            residual = jnp.einsum("kij,ki->kj", self.eigenvectors, residual)
        shift = a * ratio * residual  # mu_k - m_k, in the basis of eigenvectors
        if self.eigenvectors is not None:
            shift = jnp.einsum("kij,kj->ki", self.eigenvectors, shift)
            ratio = jnp.einsum("kij,kj->ki", self.eigenvectors**2, ratio)
        logits = log_weights - 0.5 * jnp.sum(residual**2 / spread + jnp.log(spread), axis=1)
        probs = jax.nn.softmax(logits)
        component_means = self.means + shift  # mu_k
        mean = probs @ component_means
        return mean, probs @ ratio + probs @ (component_means - mean) ** 2 / noise


@final
class GaussianMixture(AbstractDenoiser):
    """The exact denoiser of x_0 ~ sum_k weights[k] N(means[k], covariances[k]).

    Isotropic components require matrix multiplications only, over any batch of events, and memory
    quadratic in their number; others require memory for every pair of event and component.
    Log-densities are compared by differences, so that float32 suffices in hundreds of dimensions.

    Args:
        schedule: the schedule of the process.
        weights: shape `(num_components,)`, summing to 1.
        means: shape `(num_components, *event_shape)`.
        covariances: one variance for all; one each, shape `(num_components,)`; diagonals, shape
            `(num_components, *event_shape)`; or matrices over the flattened event, shape
            `(num_components, d, d)`. Zero gives point masses, as of an empirical prior.

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
    if covariances.shape not in ((number, *rest), (number, size, size)):
        raise ValueError(
            f"covariances has shape {covariances.shape}; {number} components over events of shape "
            f"{tuple(rest)} need shape (), {(number,)}, {(number, *rest)} or "
            f"{(number, size, size)}."
        )
    pairs = [
        eigendecomposition("covariances", covariance, tuple(rest))
        for covariance in covariances[used]
    ]
    eigenvalues = np.stack([values for values, _ in pairs])
    vectors = [vectors for _, vectors in pairs if vectors is not None]
    return GeneralComponents(flat, eigenvalues, np.stack(vectors) if vectors else None)
