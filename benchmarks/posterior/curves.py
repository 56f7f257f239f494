"""Mixtures of smooth curves and images with many linear observations.

K components with smooth means and one covariance, whose spectrum is a power law: of curves of 64
numbers, and of images of 16 x 16 and 32 x 32. Observations are a random subset of the numbers, a
subset of a blurred image, averages of neighbours, or random projections, with noise of known or
unknown (half-normal) standard deviation.

Exact posterior: with A C A' = U S U', component k has, conditional on sigma,

    y     ~ N(A m_k, U (S + sigma^2) U')
    x | y = m_k + e + C A' U (S + sigma^2)^{-1} U' (y - A (m_k + e) - sigma f),

with e ~ N(0, C) and f ~ N(0, I) (Matheron's rule), so the posterior is again a mixture.
"""

import math

import numpy as np
import scipy.fft
import scipy.ndimage

import diffppl as dp

from .mixtures import KnownNoise, Mixture, UnknownNoise

SHAPES = {64: (64,), 256: (16, 16), 1024: (32, 32)}
OPERATORS = ("mask", "blur", "average", "projection")
POWER = 2.0  # of the spectrum of the covariance: variances fall as (1 + frequency)^-2
CELLS = [  # numbers of x, observations, numbers observed, components, sigma (None: unknown)
    *((64, operator, num, 5, 0.3) for operator in OPERATORS for num in (8, 32)),
    *((256, operator, num, 5, 0.3) for operator in OPERATORS for num in (32, 128)),
    *((1024, operator, num, 5, 0.3) for operator in OPERATORS for num in (128, 512)),
    *((64, "mask", 32, components, 0.3) for components in (1, 25)),
    *((64, "mask", 32, 5, sigma) for sigma in (0.05, 1.0, None)),
    *((256, "mask", 128, 5, sigma) for sigma in (0.05, 1.0, None)),
]


class SmoothMixture(Mixture):
    """K smooth curves or images, with one covariance, observed through a matrix."""

    within = 1.0

    def __init__(
        self, rng: np.random.Generator, size: int, operator: str, num: int, components: int
    ) -> None:
        shape = SHAPES[size]
        weights = rng.normal(size=components) ** 2
        self.weights = weights / weights.sum()
        frequency = np.sqrt(sum(np.square(k) for k in np.indices(shape)))
        spectrum = (1 + frequency) ** -POWER
        spectrum *= size / spectrum.sum()  # the average variance of a coordinate is 1
        low = np.where(frequency < 4, rng.normal(size=(components, *shape)), 0.0)
        low *= 3 * math.sqrt(size / (frequency < 4).sum())  # a standard deviation of 3
        self.means = basis(low).reshape(components, size)
        # Coordinates in a basis of cosines are independent.
        self.root = (basis(np.eye(size).reshape(size, *shape)).reshape(size, size).T) * np.sqrt(
            spectrum.ravel()
        )
        self.covariance = self.root @ self.root.T
        self.matrix = observation(rng, shape, operator, num)
        self.values, self.vectors = np.linalg.eigh(self.matrix @ self.covariance @ self.matrix.T)

    def model(self, num_steps: int) -> dp.DiffusionModel:
        """See `Mixture.model`."""
        size = self.means.shape[1]
        length = math.sqrt((self.means**2).sum(1).max() + size)
        schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.05, 10 * length))
        denoiser = dp.denoisers.GaussianMixture(
            schedule, self.weights, self.means, self.covariance[None]
        )
        return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, (size,))

    def prior(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """See `Mixture.prior`."""
        means = self.means[rng.choice(len(self.weights), p=self.weights, size=num)]
        return means + rng.normal(size=means.shape) @ self.root.T

    def log_joint(self, y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """See `Mixture.log_joint`."""
        total = self.values + sigma[..., None] ** 2
        squares = ((y - self.means @ self.matrix.T) @ self.vectors) ** 2
        log_det = np.log(2 * np.pi * total).sum(-1, keepdims=True)
        return np.log(self.weights) - 0.5 * ((1 / total) @ squares.T + log_det)

    def posterior(
        self, rng: np.random.Generator, y: np.ndarray, sigma: np.ndarray, component: np.ndarray
    ) -> np.ndarray:
        """See `Mixture.posterior`."""
        means = self.means[component]
        x = means + rng.normal(size=means.shape) @ self.root.T
        error = y - x @ self.matrix.T - sigma[:, None] * rng.normal(size=(len(sigma), len(y)))
        solved = (error @ self.vectors) / (self.values + sigma[:, None] ** 2)
        return x + solved @ self.vectors.T @ (self.matrix @ self.covariance)


def basis(coefficients: np.ndarray) -> np.ndarray:
    """Return signals from their coefficients in the orthonormal basis of cosines."""
    axes = tuple(range(1, coefficients.ndim))
    return scipy.fft.idctn(coefficients, axes=axes, norm="ortho")


def observation(
    rng: np.random.Generator, shape: tuple[int, ...], operator: str, num: int
) -> np.ndarray:
    """Return the matrix of an observation of `num` numbers."""
    size = math.prod(shape)
    if operator == "projection":
        return np.linalg.qr(rng.normal(size=(size, num)))[0].T
    rows = np.sort(rng.choice(size, num, replace=False))
    identity = np.eye(size).reshape(size, *shape)
    if operator == "blur":
        identity = scipy.ndimage.gaussian_filter(identity, 1.0, axes=range(1, 1 + len(shape)))
    elif operator == "average":
        identity = scipy.ndimage.uniform_filter(identity, 3, axes=range(1, 1 + len(shape)))
    # Row i is the response at i to an impulse at each coordinate.
    return identity.reshape(size, size).T[rows]


def problem(
    size: int, operator: str, num: int, components: int, sigma: float | None, seed: int
) -> KnownNoise | UnknownNoise:
    """Return the problem of a cell."""
    rng = np.random.default_rng([size, OPERATORS.index(operator), num, components, seed])
    mixture = SmoothMixture(rng, size, operator, num, components)
    cell = f"{operator} {num}/{size}, K={components}, sigma {sigma or 'unknown'}"
    if sigma is None:
        return UnknownNoise(rng, mixture, "curves", cell, seed)
    return KnownNoise(rng, mixture, sigma, "curves", cell, seed)
