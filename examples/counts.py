"""Poisson observations: the rate of a flaring source from photon counts.

A source has flares with a fast rise and a slow decay. A detector counts a few photons in each time
bin, y ~ Poisson(exp(x)). A prior is fitted to simulated log-rates x and used in a program with this
likelihood. For comparison, the exact posterior is computed by importance sampling: two million new
simulations, weighted by their likelihood.

Expected result: from the noisy counts the posterior recovers flares with a sharp onset, and its
90 % band covers the true rate.

    python examples/counts.py            about a minute on two cores
    python examples/counts.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import diffppl as dp

SIZE = 32
TIME = np.arange(SIZE)


def simulate(rng: np.random.Generator, num: int) -> np.ndarray:
    """Draw log-rates: a constant background and one or two flares of random height and decay."""
    rate = np.exp(0.3 * rng.normal(size=(num, 1)) - 0.5) * np.ones(SIZE)
    for present in (np.ones((num, 1)), rng.uniform(size=(num, 1)) < 0.5):
        since = TIME - rng.uniform(0, SIZE - 6, size=(num, 1))
        height, decay = rng.uniform(2, 10, size=(num, 1)), rng.uniform(2, 6, size=(num, 1))
        rise = 1 / (1 + np.exp(-4 * since))
        rate += present * height * rise * np.exp(-np.maximum(since, 0) / decay)
    return np.log(rate) + 0.1 * rng.normal(size=(num, SIZE))


def solve(rng: np.random.Generator, y: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact posterior mean and 90 % band of the rate, by `num` weighted simulations."""
    kept, log_weights = [], []
    for _ in range(num // 10_000):
        x = simulate(rng, 10_000)
        log_weight = x @ y - np.exp(x).sum(axis=1)  # the Poisson log-likelihood up to a constant
        likely = log_weight > log_weight.max() - 20
        kept.append(x[likely])
        log_weights.append(log_weight[likely])
    log_weight, rate = np.concatenate(log_weights), np.exp(np.concatenate(kept))
    chosen = np.exp(log_weight - np.logaddexp.reduce(log_weight))
    draws = rate[rng.choice(len(rate), 20_000, p=chosen / chosen.sum())]
    print(f"exact answer: {num:,} simulations, worth {1 / np.sum(chosen**2):,.0f} posterior draws")
    return chosen @ rate, np.quantile(draws, [0.05, 0.95], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, iterations, particles = (20, 20, 50) if args.tiny else (100, 4_000, 1_000)

    # Fit a prior to simulated log-rates.
    rng = np.random.default_rng(0)
    network = dp.networks.MLP((SIZE,), 32 if args.tiny else 128, key=jax.random.key(0))
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.Learned(num_steps, beta_1=1e-3)),
        network=network,
        event_shape=(SIZE,),
    )
    data = simulate(rng, 50_000)
    model = dp.fit(
        jax.random.key(1),
        model,
        data,
        num_iterations=iterations,
        batch_size=256,
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
    ).model

    # Condition it on counts.
    def program(y=None):
        x = numpyro.sample("x", model())
        rate = numpyro.deterministic("rate", jnp.exp(x))
        numpyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)

    truth = np.exp(simulate(rng, 1)[0])
    y = rng.poisson(truth)
    posterior = dp.Posterior(program, dp.TwistedSMC(particles), num_samples=particles)
    posterior.run(jax.random.key(2), y=jnp.asarray(y))
    rate = np.asarray(posterior.get_samples()["rate"])
    bands = {
        "diffppl": (rate.mean(axis=0), np.quantile(rate, [0.05, 0.95], axis=0)),
        "exact": solve(rng, y, num=50_000 if args.tiny else 2_000_000),
    }
    print(f"\n{'':10}{'photons expected in all':>26}{'truth inside the 90 % band':>30}")
    for name, (mean, (low, high)) in bands.items():
        inside = np.mean((low <= truth) & (truth <= high))
        print(f"{name:10}{mean.sum():26.1f}{100 * inside:28.0f} %")
    print(f"{'truth':10}{truth.sum():26.1f}")
    print(f"{'counted':10}{y.sum():26d}")
    raw, ours, best = (
        np.sqrt(np.mean((guess - truth) ** 2)) for guess in (y, *(b[0] for b in bands.values()))
    )
    print(f"error of the rate (rms): counts {raw:.2f}, diffppl {ours:.2f}, exact {best:.2f}")
    figure = draw(data, truth, y, rate, bands)
    figure.savefig(args.output / "counts.png", dpi=110)
    print(f"wrote {args.output / 'counts.png'}")


def draw(data, truth, y, rate, bands) -> plt.Figure:
    """Plot training examples of the prior, and the posterior of the rate."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.2), width_ratios=[3, 5], layout="constrained"
    )
    for i, curve in enumerate(np.exp(data[:5])):
        left.plot(TIME, curve + 14 * i, color="0.3")
        left.axhline(14 * i, color="0.8", linewidth=0.5)
    left.set(
        title="Five of the simulated rates, the prior's examples", xlabel="time bin", yticks=[]
    )

    right.bar(TIME, y, width=1, color="0.85", label="counts")
    mean, (low, high) = bands["diffppl"]
    right.fill_between(TIME, low, high, color="C0", alpha=0.3, linewidth=0, label="diffppl, 90 %")
    right.plot(TIME, mean, color="C0", label="diffppl, mean")
    for edge in bands["exact"][1]:
        right.plot(TIME, edge, "k:", linewidth=1.2)
    right.plot([], "k:", label="exact, 90 %")
    right.plot(TIME, truth, color="C3", label="true rate")
    right.set(title="The rate behind the counts", xlabel="time bin", ylabel="photons per bin")
    right.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
