"""Components of Gaussian mixtures, by the form of their covariances.

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
class SharedComponents(AbstractComponents):
    """One covariance V diag(lambda) V' for all; over components there are matrix products only.

    In the basis V the components differ by their means alone, and are compared with the nearest
    one in the metric of 1 / S, S_j = a^2 lambda_j + s^2.
    """

    center: Float[Array, " d"]
    means: Float[Array, "components d"]  # less the center, in the basis of eigenvectors
    eigenvalues: Float[Array, " d"]
    eigenvectors: Float[Array, "d d"] | None

    def __init__(
        self, means: np.ndarray, eigenvalues: np.ndarray, eigenvectors: np.ndarray | None
    ) -> None:
        center = means.mean(axis=0)
        means = means - center if eigenvectors is None else (means - center) @ eigenvectors
        self.center = jnp.asarray(center, dtype=float)
        self.means = jnp.asarray(means, dtype=float)
        self.eigenvalues = jnp.asarray(eigenvalues, dtype=float)
        self.eigenvectors = None if eigenvectors is None else jnp.asarray(eigenvectors, dtype=float)

    def moments(
        self, x_t: Array, alpha_bar: Array, noise: Array, log_weights: Array
    ) -> tuple[Array, Array]:
        a, means, vectors = jnp.sqrt(alpha_bar), self.means, self.eigenvectors
        spread = alpha_bar * self.eigenvalues + noise  # S
        ratio, scaled, offsets = self.eigenvalues / spread, means / spread, noise * means / spread
        x_t = x_t - a * self.center
        if vectors is not None:
            x_t, offsets = x_t @ vectors, offsets @ vectors.T
        # Any component n yields the same result; the nearest one loses the fewest digits.
        approx = (
            log_weights + a * (scaled @ x_t) - 0.5 * alpha_bar * jnp.sum(scaled * means, axis=1)
        )
        nearest = jnp.argmax(jax.lax.stop_gradient(approx))
        residual, nearest_offset = x_t - a * means[nearest], offsets[nearest]
        distances = jnp.sum((means - means[nearest]) ** 2 / spread, axis=1)
        projections = scaled @ residual - scaled[nearest] @ residual
        probs = jax.nn.softmax(log_weights + a * projections - 0.5 * alpha_bar * distances)

        # mu_k = gain x_t + offset_k, centered, with the same gain for all k. The offsets' moments
        # around that of n have no term for n, so that nothing cancels when its probability is 1.
        shift = a * ratio * x_t
        others = jnp.where(jnp.arange(probs.size) == nearest, 0.0, probs)
        total = jnp.sum(others)
        first = others @ offsets - total * nearest_offset
        second = others @ offsets**2 - nearest_offset * (2 * first + total * nearest_offset)
        within = ratio
        if vectors is not None:
            shift, within = vectors @ shift, vectors**2 @ ratio
        mean = self.center + shift + nearest_offset + first
        return mean, within + jnp.maximum(second - first**2, 0.0) / noise


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
