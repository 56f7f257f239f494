"""Exact inference in Gaussian mixtures, the reference of several examples."""

from typing import NamedTuple

import numpy as np


class Mixture(NamedTuple):
    """A mixture sum_k weights[k] N(means[k], covariances[k]), shapes (k,), (k, d), (k, d, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def given(self, matrix: np.ndarray, y: np.ndarray, noise: float) -> tuple["Mixture", float]:
        """Return the posterior of x from y = matrix @ x + noise * N(0, I), and log p(y) in nats."""
        cross = self.covariances @ matrix.T
        total = matrix @ cross + noise**2 * np.eye(len(y))
        gain = np.swapaxes(np.linalg.solve(total, np.swapaxes(cross, 1, 2)), 1, 2)
        residual = y - self.means @ matrix.T
        square = np.einsum(
            "ki,ki->k", residual, np.linalg.solve(total, residual[..., None])[..., 0]
        )
        log_joint = np.log(self.weights) - 0.5 * (square + np.linalg.slogdet(2 * np.pi * total)[1])
        log_evidence = np.logaddexp.reduce(log_joint)
        means = self.means + np.einsum("kij,kj->ki", gain, residual)
        covariances = self.covariances - gain @ np.swapaxes(cross, 1, 2)
        return Mixture(np.exp(log_joint - log_evidence), means, covariances), log_evidence

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and second moment of every coordinate."""
        variances = np.diagonal(self.covariances, axis1=1, axis2=2)
        return self.weights @ self.means, self.weights @ (variances + self.means**2)

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Return independent draws, shape (num, d)."""
        chosen = rng.choice(len(self.weights), size=num, p=self.weights / self.weights.sum())
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        noise = rng.normal(size=(num, self.means.shape[1]))
        return self.means[chosen] + np.einsum("nij,nj->ni", roots[chosen], noise)
