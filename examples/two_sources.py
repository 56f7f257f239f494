"""Source separation: two diffusion priors in one program.

A recording is the sum of a hum, a slow wave of unknown pitch and phase, and a click, a decaying
pulse at an unknown time: y = hum + click + noise. Each source has its own diffusion prior. The
priors are mixtures of Gaussians with analytic denoisers, so the exact posterior is available: a sum
over all pairs of components.

Expected result: the posterior of the hum is concentrated, and that of the click has a mode at every
plausible time with about the exact probability.

    python examples/two_sources.py            about a minute on two cores
    python examples/two_sources.py --tiny     seconds, to see that it runs
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

SIZE, NOISE, TEXTURE = 24, 0.5, 0.1
TIME = np.arange(SIZE)


def make_priors() -> dict[str, Mixture]:
    """Return the priors: hums of three pitches and 16 phases, clicks of both signs at all times."""
    phases = 2 * np.pi * np.arange(16) / 16
    hums = [np.sin(2 * np.pi * n * TIME / SIZE + p) for n in (1, 1.5, 2) for p in phases]
    since = TIME - np.arange(1, SIZE - 3)[:, None]
    pulses = np.where(since >= 0, 1.5 * np.exp(-np.maximum(since, 0) / 3), 0.0)
    clicks = np.concatenate([pulses, -pulses])
    return {name: as_mixture(np.array(means)) for name, means in (("hum", hums), ("click", clicks))}


def as_mixture(means: np.ndarray) -> Mixture:
    covariances = np.tile(TEXTURE**2 * np.eye(SIZE), (len(means), 1, 1))
    return Mixture(np.full(len(means), 1 / len(means)), means, covariances)


def solve(priors: dict[str, Mixture], y: np.ndarray) -> tuple[Mixture, float]:
    """Return the exact posterior of (hum, click), stacked, and log p(y)."""
    hum, click = priors["hum"], priors["click"]
    i, j = (index.ravel() for index in np.indices((len(hum.weights), len(click.weights))))
    covariances = np.tile(TEXTURE**2 * np.eye(2 * SIZE), (len(i), 1, 1))
    means = np.concatenate([hum.means[i], click.means[j]], axis=1)
    both = Mixture(hum.weights[i] * click.weights[j], means, covariances)
    return both.given(np.hstack([np.eye(SIZE), np.eye(SIZE)]), y, NOISE)


def define(prior: Mixture, num_steps: int) -> dp.DiffusionModel:
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.03, 30.0))
    denoiser = dp.denoisers.GaussianMixture(schedule, prior.weights, prior.means, TEXTURE**2)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, event_shape=(SIZE,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, particles = (20, 50) if args.tiny else (100, 1_500)

    priors = make_priors()
    hums, clicks = (define(prior, num_steps) for prior in priors.values())

    def program(y=None):
        hum = numpyro.sample("hum", hums())
        click = numpyro.sample("click", clicks())
        numpyro.sample("y", dist.Normal(hum + click, NOISE).to_event(1), obs=y)

    rng = np.random.default_rng(6)
    truth = {name: prior.draw(rng, 1)[0] for name, prior in priors.items()}
    y = truth["hum"] + truth["click"] + NOISE * rng.normal(size=SIZE)
    posterior = dp.Posterior(program, dp.TwistedSMC(particles), num_samples=particles)
    posterior.run(jax.random.key(0), y=jnp.asarray(y))
    samples = {name: np.asarray(value) for name, value in posterior.get_samples().items()}

    known, log_evidence = solve(priors, y)
    mean, square = (moment.reshape(2, SIZE) for moment in known.moments())
    exact = dict(zip(priors, zip(mean, np.sqrt(square - mean**2), strict=True), strict=True))
    print("\nsource   error of the mean (in exact sd), largest   sd / exact sd, from .. to")
    for name, (mean, sd) in exact.items():
        worst = np.max(np.abs(samples[name].mean(axis=0) - mean) / sd)
        ratio = samples[name].std(axis=0) / sd
        print(f"{name:8} {worst:41.2f}   {ratio.min():.2f} .. {ratio.max():.2f}")
    print(f"log evidence: {posterior.log_evidence}; exact {log_evidence:.3f}")
    figure = draw(y, truth, samples, exact)
    figure.savefig(args.output / "two_sources.png", dpi=110)
    print(f"wrote {args.output / 'two_sources.png'}")


def draw(y, truth, samples, exact) -> plt.Figure:
    """Plot the recording, and draws, truth and exact moments of each source."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    axes[0].plot(TIME, truth["hum"] + truth["click"], "k", label="hum + click, the truth")
    axes[0].plot(TIME, y, "o", color="C3", label="recorded")
    axes[0].set(title="The recording", xlabel="time")
    for axis, (name, (mean, sd)), color in zip(axes[1:], exact.items(), ("C0", "C1"), strict=True):
        axis.plot(TIME, samples[name][:80].T, color=color, alpha=0.12, linewidth=1)
        axis.plot([], color=color, label="posterior draws")
        axis.plot(TIME, truth[name], "k", label="truth")
        for sign in (-1, 1):
            axis.plot(TIME, mean + sign * sd, "k_", markersize=7)
        axis.plot([], "k_", label="exact mean ± sd")
        axis.set(title=f"The {name}", xlabel="time")
    for axis in axes:
        axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
