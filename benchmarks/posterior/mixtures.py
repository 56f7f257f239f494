"""Mixtures of 25 Gaussians with linear observations, and noise of known or unknown size.

The problems of Cardoso, Janati, Le Corff and Moulines 2024 (MCGdiff): unit Gaussians on a lattice,
with normalised squared standard normals as weights; A with random singular vectors and sorted
uniform singular values; sigma uniform times the largest of them. Alternatively sigma is a latent
with a half-normal prior.

Exact posterior: with A = U S V', component k has, conditional on sigma,

    y     ~ N(A m_k, U (S^2 + sigma^2) U')
    x | y ~ N(m_k + V S/(S^2 + sigma^2) U'(y - A m_k),  I - V S^2/(S^2 + sigma^2) V'),

so the posterior is again a mixture; log sigma is scalar, and integrated on a grid.
"""

import abc

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import diffppl as dp

from .problem import Draws, Problem, sliced_wasserstein, wasserstein

CELLS = [(d_x, d_y) for d_x in (8, 80, 800) for d_y in (1, 2, 4)]
LATTICE = np.array([[i, j] for i in range(-2, 3) for j in range(-2, 3)], dtype=float)
NOISE_SCALE = 0.5  # scale of the half-normal prior of sigma
COMPARISONS = 4  # sets of exact draws that a method's draws are compared with


def known_noise(model, matrix, sigma, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(matrix @ x, sigma).to_event(1), obs=y)


def unknown_noise(model, matrix, y=None):
    x = numpyro.sample("x", model())
    sigma = numpyro.sample("sigma", dist.HalfNormal(NOISE_SCALE))
    numpyro.sample("y", dist.Normal(matrix @ x, sigma).to_event(1), obs=y)


def first_known(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Delta(x[:1], event_dim=1), obs=y)


class Mixture(abc.ABC):
    """A Gaussian mixture, observed through `matrix`, and its exact posterior."""

    weights: np.ndarray
    means: np.ndarray
    matrix: np.ndarray
    within: float  # average variance of a coordinate within a component

    @property
    def variance(self) -> float:
        """Variance of a coordinate, averaged over coordinates."""
        spread = self.weights @ self.means**2 - (self.weights @ self.means) ** 2
        return self.within + float(spread.mean())

    @abc.abstractmethod
    def model(self, num_steps: int) -> dp.DiffusionModel:
        """Return the model, with log-spaced noise levels up to ten times the norm of the data."""

    @abc.abstractmethod
    def prior(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Draw x from the prior."""

    @abc.abstractmethod
    def log_joint(self, y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Return log p(component, y | sigma), shape `(*sigma, components)`."""

    @abc.abstractmethod
    def posterior(
        self, rng: np.random.Generator, y: np.ndarray, sigma: np.ndarray, component: np.ndarray
    ) -> np.ndarray:
        """Draw x once for each sigma and component."""


class LinearMixture(Mixture):
    """25 Gaussians with a linear map."""

    within = 1.0

    def __init__(self, rng: np.random.Generator, d_x: int, d_y: int) -> None:
        weights = rng.normal(size=25) ** 2
        self.weights = weights / weights.sum()
        self.means = np.tile(8 * LATTICE, (1, d_x // 2))
        u, singular, self.v = np.linalg.svd(rng.normal(size=(d_y, d_x)), full_matrices=False)
        self.u, self.singular = u, np.sort(rng.uniform(size=len(singular)))[::-1]
        self.matrix = u * self.singular @ self.v

    def model(self, num_steps: int) -> dp.DiffusionModel:
        """See `Mixture.model`."""
        d_x = self.means.shape[1]
        length = np.sqrt((self.means**2).sum(1).max() + d_x)
        schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.05, 10 * length))
        denoiser = dp.denoisers.GaussianMixture(schedule, self.weights, self.means, 1.0)
        return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, (d_x,))

    def prior(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """See `Mixture.prior`."""
        means = self.means[rng.choice(25, p=self.weights, size=num)]
        return means + rng.normal(size=means.shape)

    def log_joint(self, y: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """See `Mixture.log_joint`."""
        total = self.singular**2 + sigma[..., None, None] ** 2
        residual = (y - self.means @ self.matrix.T) @ self.u
        log_density = -0.5 * (residual**2 / total + np.log(2 * np.pi * total)).sum(-1)
        return np.log(self.weights) + log_density

    def posterior(
        self, rng: np.random.Generator, y: np.ndarray, sigma: np.ndarray, component: np.ndarray
    ) -> np.ndarray:
        """See `Mixture.posterior`."""
        means = self.means[component]
        total = self.singular**2 + sigma[:, None] ** 2
        shift = ((y - means @ self.matrix.T) @ self.u) * self.singular / total
        noise = rng.normal(size=means.shape)
        # The covariance I - V S^2/(S^2 + sigma^2) V' has the symmetric square root
        # I - V (1 - sigma/sqrt(S^2 + sigma^2)) V'.
        shrunk = (noise @ self.v.T) * (1 - sigma[:, None] / np.sqrt(total))
        return means + noise + (shift - shrunk) @ self.v


class OfMixture(Problem):
    """A problem whose prior is a mixture."""

    mixture: Mixture
    num_steps = 100

    def model(self, num_steps: int) -> dp.DiffusionModel:
        """See `Problem.model`."""
        return self.mixture.model(num_steps)

    def distance(self, rng: np.random.Generator, draws: Draws) -> dict[str, float]:
        """Sliced Wasserstein distance of x, and W1 of log sigma if it is a latent."""
        found = []
        for _ in range(COMPARISONS):
            exact = self.draw(rng, len(draws["x"]))
            each = {"x": sliced_wasserstein(rng, draws["x"], exact["x"])}
            if "sigma" in exact:
                each["log sigma"] = wasserstein(np.log(draws["sigma"]), np.log(exact["sigma"]))
            found.append(each)
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


class KnownNoise(OfMixture):
    """A problem with known sigma."""

    program = staticmethod(known_noise)

    def __init__(
        self,
        rng: np.random.Generator,
        mixture: Mixture,
        sigma: float,
        group: str,
        cell: str,
        seed: int,
    ) -> None:
        self.group, self.cell, self.seed = group, cell, seed
        self.mixture, self.sigma, self.variance = mixture, sigma, mixture.variance
        x = mixture.prior(rng, 1)[0]
        self.y = mixture.matrix @ x + sigma * rng.normal(size=len(mixture.matrix))
        self.arguments = (jnp.asarray(mixture.matrix), jnp.asarray(sigma))
        log_joint = mixture.log_joint(self.y, np.array(sigma))
        self.log_evidence = float(np.logaddexp.reduce(log_joint))
        self.weights = np.exp(log_joint - self.log_evidence)

    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.prior`."""
        return {"x": self.mixture.prior(rng, num)}

    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.draw`."""
        probabilities = self.weights / self.weights.sum()
        component = rng.choice(len(probabilities), p=probabilities, size=num)
        return {"x": self.mixture.posterior(rng, self.y, np.full(num, self.sigma), component)}


class UnknownNoise(OfMixture):
    """The same with sigma ~ HalfNormal: the joint posterior of x and log sigma."""

    program = staticmethod(unknown_noise)

    def __init__(
        self, rng: np.random.Generator, mixture: Mixture, group: str, cell: str, seed: int
    ) -> None:
        self.group, self.cell, self.seed = group, cell, seed
        self.mixture, self.variance = mixture, mixture.variance
        truth = self.prior(rng, 1)
        noise = truth["sigma"][0] * rng.normal(size=len(mixture.matrix))
        self.y = mixture.matrix @ truth["x"][0] + noise
        self.arguments = (jnp.asarray(mixture.matrix),)
        # The density of log sigma is smooth: the error of the sum over a fine grid is negligible.
        log_sigma = np.linspace(-16.0, np.log(8), 20_001) + np.log(NOISE_SCALE)
        self.cell_width = log_sigma[1] - log_sigma[0]
        ratio = np.exp(log_sigma) / NOISE_SCALE
        log_prior = 0.5 * np.log(2 / np.pi) - 0.5 * ratio**2 + np.log(ratio)  # of log sigma
        log_joint = np.logaddexp.reduce(mixture.log_joint(self.y, np.exp(log_sigma)), axis=-1)
        log_joint += log_prior + np.log(self.cell_width)
        self.log_evidence = float(np.logaddexp.reduce(log_joint))
        self.log_sigma, self.weights = log_sigma, np.exp(log_joint - self.log_evidence)

    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.prior`."""
        sigma = NOISE_SCALE * np.abs(rng.normal(size=num))
        return {"x": self.mixture.prior(rng, num), "sigma": sigma}

    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.draw`."""
        log_sigma = rng.choice(self.log_sigma, p=self.weights / self.weights.sum(), size=num)
        log_sigma = log_sigma + self.cell_width * rng.uniform(-0.5, 0.5, size=num)
        sigma = np.exp(log_sigma)
        log_joint = self.mixture.log_joint(self.y, sigma)
        component = np.argmax(log_joint + rng.gumbel(size=log_joint.shape), axis=1)
        return {"x": self.mixture.posterior(rng, self.y, sigma, component), "sigma": sigma}


def published(d_x: int, d_y: int, seed: int) -> KnownNoise:
    """Return a problem of the published table."""
    rng = np.random.default_rng([d_x, d_y, seed])
    mixture = LinearMixture(rng, d_x, d_y)
    sigma = rng.uniform() * mixture.singular.max()
    return KnownNoise(rng, mixture, sigma, "mixtures", f"mixture {d_x}/{d_y}", seed)


def published_unknown(d_x: int, d_y: int, seed: int) -> UnknownNoise:
    """Return a problem like those of the published table, with unknown sigma."""
    rng = np.random.default_rng([d_x, d_y, seed, 1])
    return UnknownNoise(rng, LinearMixture(rng, d_x, d_y), "noise", f"noise {d_x}/{d_y}", seed)


class Mask(OfMixture):
    """A noiseless observation of the first coordinate, consistent with five components."""

    group = "mask"
    program, arguments = staticmethod(first_known), ()

    def __init__(self, d_x: int, seed: int) -> None:
        rng = np.random.default_rng([d_x, seed, 2])
        self.cell, self.seed, self.mixture = f"mask {d_x}", seed, LinearMixture(rng, d_x, 1)
        self.variance = self.mixture.variance
        self.y = self.mixture.prior(rng, 1)[0, :1]
        gap = self.y - self.mixture.means[:, 0]
        log_joint = np.log(self.mixture.weights) - 0.5 * (gap**2 + np.log(2 * np.pi))
        self.log_evidence = float(np.logaddexp.reduce(log_joint))
        self.weights = np.exp(log_joint - self.log_evidence)

    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.prior`."""
        return {"x": self.mixture.prior(rng, num)}

    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.draw`."""
        means = self.mixture.means[rng.choice(25, p=self.weights / self.weights.sum(), size=num)]
        x = means + rng.normal(size=means.shape)
        x[:, 0] = self.y
        return {"x": x}
