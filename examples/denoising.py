"""Denoising with an unknown noise level, compared with the exact posterior.

A signal with one step between two levels is observed with noise of unknown standard deviation
sigma. The prior is a mixture of Gaussians with an analytic denoiser, so the exact joint posterior
of the signal and sigma is available: a sum over the components, on a grid of sigma.

Expected result: the posterior draws have sharp steps at all plausible positions, rather than a
smooth average, and the posteriors of the signal and of sigma agree with the exact ones.

    python examples/denoising.py            about a minute on two cores
    python examples/denoising.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from common.mixtures import Mixture

import diffppl as dp

SIZE, TEXTURE, SIGMA = 20, 0.12, 0.7
LEVELS = np.linspace(-1.2, 1.2, 5)


def make_prior() -> Mixture:
    """Return the prior: steps between all levels at all positions, with a small texture."""
    pairs = [(low, high) for low in LEVELS for high in LEVELS if low != high]
    edges = np.arange(SIZE) >= np.arange(2, SIZE - 1)[:, None]
    means = np.array([np.where(edge, high, low) for edge in edges for low, high in pairs])
    covariances = np.tile(TEXTURE**2 * np.eye(SIZE), (len(means), 1, 1))
    return Mixture(np.full(len(means), 1 / len(means)), means, covariances)


def solve(prior: Mixture, y: np.ndarray, grid: np.ndarray) -> dict[str, np.ndarray | float]:
    """Return the exact posterior of sigma on a grid, and of the signal averaged over it."""
    each = [prior.given(np.eye(SIZE), y, sigma) for sigma in grid]
    log_joint = np.array([log_evidence for _, log_evidence in each])
    log_joint += np.asarray(dist.HalfNormal(1.0).log_prob(grid))
    step = grid[1] - grid[0]
    log_evidence = np.logaddexp.reduce(log_joint) + np.log(step)
    density = np.exp(log_joint - log_evidence)
    moments = np.array([posterior.moments() for posterior, _ in each])
    mean, square = np.tensordot(density * step, moments, axes=1)
    return {
        "density": density,
        "log p": log_evidence,
        "mean": mean,
        "sd": np.sqrt(square - mean**2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, particles = (20, 50) if args.tiny else (200, 1_000)

    rng = np.random.default_rng(14)
    prior = make_prior()
    x = np.where(np.arange(SIZE) < 9, -0.6, 0.9) + TEXTURE * rng.normal(size=SIZE)
    y = x + SIGMA * rng.normal(size=SIZE)
    grid = np.linspace(0.005, 2.5, 500)
    exact = solve(prior, y, grid)

    # The analytic denoiser of the prior takes the place of a fitted network.
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.03, 30.0))
    denoiser = dp.denoisers.GaussianMixture(schedule, prior.weights, prior.means, TEXTURE**2)
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, event_shape=(SIZE,))

    def program(y=None):
        x = numpyro.sample("x", model())
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    posterior = dp.Posterior(program, dp.TwistedSMC(particles), num_samples=particles)
    posterior.run(jax.random.key(0), y=jnp.asarray(y))
    samples = {name: np.asarray(value) for name, value in posterior.get_samples().items()}
    mean, sd, sigma = samples["x"].mean(axis=0), samples["x"].std(axis=0), samples["sigma"]

    weights = exact["density"] * (grid[1] - grid[0])
    known_mean = weights @ grid
    known_sd = np.sqrt(weights @ grid**2 - known_mean**2)
    worst = np.max(np.abs(mean - exact["mean"]) / exact["sd"])
    print(f"\nsigma: {sigma.mean():.3f} ± {sigma.std():.3f}", end="; ")
    print(f"exact {known_mean:.3f} ± {known_sd:.3f}; true value {SIGMA}")
    print(f"signal: means off by at most {worst:.2f} exact standard deviations;")
    print(f"        {np.min(sd / exact['sd']):.2f} to {np.max(sd / exact['sd']):.2f} times as wide")
    print(f"log evidence: {posterior.log_evidence}; exact {exact['log p']:.3f}")
    figure = draw(x, y, samples, exact, grid)
    figure.savefig(args.output / "denoising.png", dpi=110)
    print(f"wrote {args.output / 'denoising.png'}")


def draw(x, y, samples, exact, grid) -> plt.Figure:
    """Plot the observations, the posterior of the signal and that of sigma."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.8), width_ratios=[4, 4, 3], layout="constrained"
    )
    place = np.arange(SIZE)
    left.step(place, samples["x"][:60].T, where="mid", color="C0", alpha=0.12, linewidth=1)
    left.plot([], color="C0", label="posterior draws")
    left.step(place, x, where="mid", color="black", label="truth")
    left.plot(place, y, "o", color="C3", label="seen")
    left.set(title="A step in noise of unknown size", xlabel="place", xticks=place[::5])
    left.legend(frameon=False)

    mean, sd = samples["x"].mean(axis=0), samples["x"].std(axis=0)
    band = {"color": "C0", "alpha": 0.3, "linewidth": 0}
    middle.fill_between(place, mean - sd, mean + sd, step="mid", **band)
    middle.step(place, mean, where="mid", color="C0", label="diffppl: mean ± sd")
    for sign in (-1, 0, 1):
        middle.plot(place, exact["mean"] + sign * exact["sd"], "k_", markersize=11)
    middle.plot([], "k_", label="exact: mean, mean ± sd")
    middle.set(title="The signal", xlabel="place", xticks=place[::5], ylim=left.get_ylim())
    middle.legend(frameon=False)

    bins = np.linspace(0, 2, 41)
    right.hist(samples["sigma"], bins, density=True, color="C0", alpha=0.3, label="diffppl")
    right.plot(grid, exact["density"], "k", label="exact")
    right.plot(grid, np.asarray(jnp.exp(dist.HalfNormal(1.0).log_prob(grid))), "k:", label="prior")
    right.axvline(SIGMA, color="C3", label="truth")
    right.set(title="The noise", xlabel="sigma", xlim=(0, 2), yticks=[])
    right.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
