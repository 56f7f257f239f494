"""Discrete data: a binary sequence with missing bits and bits flipped at an unknown rate.

A sequence of 24 bits has a 1 on every beat, with a period of 4 to 7 bits and any phase. Half of the
bits are missing, and some of the others are flipped at an unknown rate. The prior is a Bernoulli
diffusion with the analytic denoiser `denoisers.Enumerated`; there are only 22 such sequences, so
the exact posterior is a sum.

Expected result: several beats have posterior probabilities close to the exact ones, and so has the
flip rate. With a chain of 500 steps a few per cent of the draws are none of the 22 sequences, since
its reverse steps are factorised; a longer chain reduces their share.

    python examples/missing_bits.py            about a minute on two cores
    python examples/missing_bits.py --tiny     seconds, to see that it runs
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

SIZE, FLIPS = 24, dist.Beta(2.0, 10.0)
BEATS = [(period, phase) for period in range(4, 8) for phase in range(period)]
STATES = np.array([np.arange(SIZE) % period == phase for period, phase in BEATS], dtype=int)
PRIOR = np.array([1 / (4 * period) for period, _ in BEATS])  # uniform over periods, and over phases


def solve(
    seen: np.ndarray, y: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the exact probabilities of the beats, density of the flip rate, and log p(y)."""
    wrong = (STATES[:, seen] != y).sum(axis=1)[:, None]
    log_joint = wrong * np.log(grid) + (len(y) - wrong) * np.log1p(-grid)
    log_joint += np.log(PRIOR)[:, None] + np.asarray(FLIPS.log_prob(grid))
    step = grid[1] - grid[0]
    log_evidence = np.logaddexp.reduce(log_joint, axis=None) + np.log(step)
    joint = np.exp(log_joint - log_evidence)
    return joint.sum(axis=1) * step, joint.sum(axis=0), log_evidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, particles = (20, 50) if args.tiny else (500, 600)

    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(num_steps), rate=0.2)
    denoiser = dp.denoisers.Enumerated(process, STATES, PRIOR)
    model = dp.DiffusionModel(process, denoiser, event_shape=(SIZE,))

    def program(seen, y=None):
        x = numpyro.sample("x", model())
        flips = numpyro.sample("flips", FLIPS)
        chance = jnp.where(x[seen] == 1, 1 - flips, flips)  # P(y = 1)
        numpyro.sample("y", dist.Bernoulli(probs=chance).to_event(1), obs=y)

    rng = np.random.default_rng(19)
    truth = BEATS.index((6, 1))
    seen = np.sort(rng.choice(SIZE, 12, replace=False))
    flipped = rng.uniform(size=len(seen)) < 0.15
    y = STATES[truth, seen] ^ flipped

    posterior = dp.Posterior(program, dp.TwistedSMC(particles), num_samples=particles)
    posterior.run(jax.random.key(0), jnp.asarray(seen), y=jnp.asarray(y))
    samples = {name: np.asarray(value) for name, value in posterior.get_samples().items()}
    x, flips = samples["x"], samples["flips"]
    share = (x[:, None] == STATES).all(axis=-1).mean(axis=0)
    grid = np.linspace(0.0005, 0.9995, 1_000)
    exact, density, log_evidence = solve(seen, y, grid)

    print(f"\n{'beat':24}{'posterior':>10}{'exact':>10}")
    for i in np.argsort(-exact)[:6]:
        note = " (the truth)" if i == truth else ""
        name = f"period {BEATS[i][0]}, phase {BEATS[i][1]}{note}"
        print(f"{name:34}{share[i]:.3f}{exact[i]:10.3f}")
    print(f"{'no heartbeat':34}{1 - share.sum():.3f}{0:10.3f}")
    weights = density / density.sum()
    print(
        f"\nflip rate: {flips.mean():.3f}; exact {weights @ grid:.3f}; {flipped.mean():.3f} flipped"
    )
    print(f"log evidence: {posterior.log_evidence}; exact {log_evidence:.3f}")
    recording = np.full(SIZE, -1)
    recording[seen] = y
    figure = draw(recording, seen[flipped], truth, x, share, exact, flips, grid, density)
    figure.savefig(args.output / "missing_bits.png", dpi=110)
    print(f"wrote {args.output / 'missing_bits.png'}")


def draw(recording, flipped, truth, x, share, exact, flips, grid, density) -> plt.Figure:
    """Plot the observations, posterior draws, probabilities of the beats, and the flip rate."""
    figure = plt.figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[5, 6])
    top, middle, bottom = left.subplots(3, 1, height_ratios=[1, 1, 9], sharex=True)
    paint = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    top.imshow(STATES[truth][None], **paint)
    top.set(title="the heartbeat", yticks=[])
    middle.imshow(np.ma.masked_less(recording, 0)[None], **paint)
    middle.plot(flipped, np.zeros(len(flipped)), "x", color="C3", markersize=9, markeredgewidth=3)
    middle.set(title="what was seen: blue is missing, a red cross was flipped", yticks=[])
    middle.set_facecolor("#cfe3f5")
    order = np.argsort(x[:60] @ (0.5 ** np.arange(SIZE)), kind="stable")
    bottom.imshow(x[:60][order], **paint)
    bottom.set(title="60 posterior draws, sorted", xlabel="bit", yticks=[])

    above, below = right.subplots(2, 1)
    place = np.arange(len(BEATS))
    above.bar(place, share, color="C0", alpha=0.5, label="diffppl")
    above.plot(place, exact, "k_", markersize=12, label="exact")
    above.plot(truth, -0.03 * exact.max(), "^", color="C3", label="truth", clip_on=False)
    names = [f"{period}:{phase}" for period, phase in BEATS]
    above.set_xticks(place, names, rotation=90, fontsize=8)
    above.set(title="which heartbeat", xlabel="period : phase", ylabel="probability")
    above.legend(frameon=False)
    below.hist(flips, np.linspace(0, 0.7, 36), density=True, color="C0", alpha=0.4, label="diffppl")
    below.plot(grid, density, "k", label="exact")
    below.plot(grid, np.exp(np.asarray(FLIPS.log_prob(grid))), "k:", label="prior")
    below.set(title="how often a bit flips", xlabel="flip rate", xlim=(0, 0.7), yticks=[])
    below.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
