"""Non-linear and discrete observations in one or two dimensions: exact posteriors on a fine grid.

The priors are mixtures of narrow Gaussians, which have analytic denoisers and densities: three
unequal bumps on the line, and an asymmetric ring and swiss roll in the plane. The observations are
a square, a product, a radius, a count and a label.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats

import diffppl as dp

from .problem import Draws, Problem, sliced_wasserstein

CELLS_PER_WIDTH = 10  # grid cells per standard deviation of the narrowest component of the prior
COMPARISONS = 4  # sets of exact draws that a method's draws are compared with

# Priors --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prior:
    """A mixture of isotropic Gaussians."""

    weights: np.ndarray
    means: np.ndarray
    widths: np.ndarray


def bumps() -> Prior:
    """Return three unequal bumps on the line."""
    means = np.array([[-1.4], [0.6], [1.6]])
    return Prior(np.array([0.5, 0.3, 0.2]), means, np.array([0.3, 0.15, 0.4]))


def ring() -> Prior:
    """Return a ring of radius 1.5, denser on one side."""
    angle = 2 * np.pi * np.arange(64) / 64
    weights = 1 + 0.6 * np.cos(angle - 0.7)
    means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Prior(weights / weights.sum(), means, np.full(64, 0.1))


def roll() -> Prior:
    """Return a swiss roll of one and a half turns, denser outwards."""
    angle = np.sqrt(np.linspace((1.5 * np.pi) ** 2, (4.5 * np.pi) ** 2, 100))
    radius = 0.1 * angle
    means = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Prior(radius / radius.sum(), means, np.full(100, 0.06))


# Observations: programs, and the same likelihoods in SciPy for the exact posterior -----------


def square(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(x[0] ** 2, 0.3), obs=y)


def product(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(x[0] * x[1], 0.2), obs=y)


def radius(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(jnp.sqrt(jnp.sum(x**2)), 0.1), obs=y)


def count(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Poisson(jnp.exp(1 + 1.5 * x[0])), obs=y)


def label(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Bernoulli(logits=4 * (x[0] - 0.3)), obs=y)


LAWS: dict[Callable[..., None], Callable[[np.ndarray], stats.distributions.rv_frozen]] = {
    square: lambda x: stats.norm(x[..., 0] ** 2, 0.3),
    product: lambda x: stats.norm(x[..., 0] * x[..., 1], 0.2),
    radius: lambda x: stats.norm(np.linalg.norm(x, axis=-1), 0.1),
    count: lambda x: stats.poisson(np.exp(1 + 1.5 * x[..., 0])),
    label: lambda x: stats.bernoulli(1 / (1 + np.exp(-4 * (x[..., 0] - 0.3)))),
}

CELLS = [
    (bumps, square),
    (bumps, count),
    (bumps, label),
    (ring, product),
    (ring, square),
    (ring, count),
    (roll, radius),
    (roll, product),
    (roll, label),
]

# The problem -----------------------------------------------------------------------------------


class Grid(Problem):
    """A prior, an observation, and data simulated from them."""

    group, num_steps = "grid", 400

    def __init__(
        self, make_prior: Callable[[], Prior], program: Callable[..., None], seed: int
    ) -> None:
        self.cell, self.seed = f"{make_prior.__name__}, {program.__name__}", seed
        self.program, self.arguments = program, ()
        self.mixture = make_prior()
        rng = np.random.default_rng([*self.cell.encode(), seed])
        law = LAWS[program]
        self.y = np.asarray(law(self.prior(rng, 1)["x"][0]).rvs(random_state=rng))
        weights, means = self.mixture.weights, self.mixture.means
        spread = weights @ means**2 - (weights @ means) ** 2
        self.variance = float(spread.mean() + weights @ self.mixture.widths**2)
        self._integrate(law)

    def _integrate(self, law: Callable[[np.ndarray], stats.distributions.rv_frozen]) -> None:
        prior = self.mixture
        reach = np.abs(prior.means).max() + 7 * prior.widths.max()
        num = int(np.ceil(2 * reach * CELLS_PER_WIDTH / prior.widths.min()))
        axis = (np.arange(num) + 0.5) / num * 2 * reach - reach
        self.width = 2 * reach / num
        # Components are isotropic, so their densities factorise over coordinates.
        each = [stats.norm.pdf(axis[:, None], mean, prior.widths) for mean in prior.means.T]
        letters = "ij"[: len(each)]
        equation = ",".join(f"{letter}k" for letter in letters) + ",k->" + letters
        density = np.einsum(equation, *each, prior.weights, optimize=True)
        self.points = np.stack(np.meshgrid(*[axis] * len(each), indexing="ij"), axis=-1)
        at_points = law(self.points)
        discrete = hasattr(at_points.dist, "pmf")
        likelihood = at_points.pmf(self.y) if discrete else at_points.pdf(self.y)
        joint = density * likelihood * self.width ** len(each)
        self.log_evidence = float(np.log(joint.sum()))
        self.points = self.points.reshape(-1, len(each))
        self.cumulative = np.cumsum(joint) / joint.sum()

    def model(self, num_steps: int) -> dp.DiffusionModel:
        """Noise levels from 1/20 of the smallest width to ten times the norm of the data."""
        weights, means, widths = self.mixture.weights, self.mixture.means, self.mixture.widths
        length = np.sqrt((means**2).sum(1).max() + widths.max() ** 2)
        schedule = dp.schedules.log_snr_linear(
            num_steps, noise_to_signal=(0.05 * widths.min(), 10 * length)
        )
        denoiser = dp.denoisers.GaussianMixture(schedule, weights, means, widths**2)
        return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, means.shape[1:])

    def prior(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.prior`."""
        component = rng.choice(len(self.mixture.weights), p=self.mixture.weights, size=num)
        means, widths = self.mixture.means[component], self.mixture.widths[component]
        return {"x": means + widths[:, None] * rng.normal(size=means.shape)}

    def draw(self, rng: np.random.Generator, num: int) -> Draws:
        """See `Problem.draw`."""
        points = self.points[np.searchsorted(self.cumulative, rng.uniform(size=num))]
        return {"x": points + self.width * rng.uniform(-0.5, 0.5, size=points.shape)}

    def distance(self, rng: np.random.Generator, draws: Draws) -> dict[str, float]:
        """See `Problem.distance`."""
        exact = [self.draw(rng, len(draws["x"]))["x"] for _ in range(COMPARISONS)]
        return {"x": float(np.mean([sliced_wasserstein(rng, draws["x"], x) for x in exact]))}
