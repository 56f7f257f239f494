"""Model comparison: the evidence of two diffusion priors.

Ten noisy readings are explained either by a slow drift or by a jump. Each hypothesis is a prior;
the same program runs with either of them, and log p(y) of both runs determines the posterior
probability of each hypothesis. Both priors are Gaussian or mixtures of Gaussians with analytic
denoisers, so the exact evidence is available.

Expected result: as the data change from a ramp to a jump, the posterior probability of the jump
follows the exact curve within its error bars.

    python examples/evidence.py            about two minutes on two cores
    python examples/evidence.py --tiny     seconds, to see that it runs
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

SIZE, NOISE = 10, 0.4
PLACE = np.arange(SIZE)


def make_priors() -> dict[str, Mixture]:
    """Return the priors: a smooth Gaussian process, and jumps up or down at all positions."""
    smooth = np.exp(-0.5 * (np.subtract.outer(PLACE, PLACE) / 3) ** 2) + 0.05 * np.eye(SIZE)
    signs = [np.where(PLACE < edge, -s, s) for edge in range(2, SIZE - 1) for s in (-1, 1)]
    loose = 0.1 * np.ones((SIZE, SIZE)) + 0.05 * np.eye(SIZE)  # offset and texture
    num = len(signs)
    return {
        "drift": Mixture(np.ones(1), np.zeros((1, SIZE)), smooth[None]),
        "jump": Mixture(np.full(num, 1 / num), np.array(signs, float), np.tile(loose, (num, 1, 1))),
    }


def define(prior: Mixture, num_steps: int) -> dp.DiffusionModel:
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.03, 30.0))
    denoiser = dp.denoisers.GaussianMixture(schedule, *prior)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, event_shape=(SIZE,))


def program(model, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, particles, num_data = (20, 50, 3) if args.tiny else (100, 800, 7)

    priors = make_priors()
    models = {name: define(prior, num_steps) for name, prior in priors.items()}
    # Data from a ramp to a jump, with the same noise realisation.
    ramp, jump = 2 * PLACE / (SIZE - 1) - 1, np.where(PLACE < SIZE // 2, -1.0, 1.0)
    noise = NOISE * np.random.default_rng(0).normal(size=SIZE)
    shares = np.linspace(0, 1, num_data)
    data = [(1 - share) * ramp + share * jump + noise for share in shares]

    method = dp.TwistedSMC(particles)
    found, errors, exact = [], [], []
    print(f"\n{'share of jump':14}{'log p(y | drift)':>28}{'log p(y | jump)':>28}", end="")
    print(f"{'log odds':>18}")
    for i, y in enumerate(data):
        runs, known = {}, {}
        for name, model in models.items():
            posterior = dp.Posterior(program, method, num_samples=particles, progress_bar=False)
            posterior.run(jax.random.key(i), model, y=jnp.asarray(y))
            runs[name] = posterior.log_evidence
            known[name] = priors[name].given(np.eye(SIZE), y, NOISE)[1]
        found.append(runs["jump"].value - runs["drift"].value)
        errors.append(np.hypot(runs["jump"].standard_error, runs["drift"].standard_error))
        exact.append(known["jump"] - known["drift"])
        cells = [
            f"{runs[n].value:8.2f} ± {runs[n].standard_error:.2f} ({known[n]:.2f})" for n in runs
        ]
        odds = f"{found[-1]:.2f} ± {errors[-1]:.2f} ({exact[-1]:.2f})"
        print(f"{shares[i]:<14.2f}{cells[0]:>28}{cells[1]:>28}{odds:>24}")
    print("in brackets: exact")
    figure = draw(priors, shares, data, np.array(found), np.array(errors))
    figure.savefig(args.output / "evidence.png", dpi=110)
    print(f"wrote {args.output / 'evidence.png'}")


def draw(priors, shares, data, found, errors) -> plt.Figure:
    """Plot draws of both priors, three of the data sets, and the posterior of the hypotheses."""
    figure = plt.figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[3, 3, 5])
    rng = np.random.default_rng(1)
    colors = {"drift": "C0", "jump": "C1"}
    for axis, (name, prior) in zip(left.subplots(2, 1, sharex=True), priors.items(), strict=True):
        axis.plot(PLACE, prior.draw(rng, 6).T, color=colors[name], alpha=0.7)
        axis.set(title=f"prior: {name}", ylim=(-3.5, 3.5))
    axes = middle.subplots(3, 1, sharex=True)
    for axis, index in zip(axes, (0, len(data) // 2, -1), strict=True):
        axis.plot(PLACE, data[index], "o-", color="black", linewidth=0.5)
        axis.set(title=f"data, share of jump {shares[index]:.2g}", ylim=(-2, 2))

    axis = right.subplots()
    fine = np.linspace(-0.02, 1.02, 200)
    weight = shares[1] - shares[0]
    lines = []
    for share in fine:  # the data are linear in the share
        y = data[0] + (data[1] - data[0]) * share / weight
        lines.append([prior.given(np.eye(SIZE), y, NOISE)[1] for prior in priors.values()])
    odds = np.diff(lines, axis=1)[:, 0]
    axis.plot(fine, 1 / (1 + np.exp(-odds)), "k", label="exact")
    middle_value, low, high = (1 / (1 + np.exp(-(found + s * 2 * errors))) for s in (0, -1, 1))
    bars = np.maximum(np.stack([middle_value - low, high - middle_value]), 0)
    axis.errorbar(
        shares, middle_value, bars, fmt="o", color="C1", capsize=3, label="diffppl, ± 2 errors"
    )
    axis.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    axis.set(title="Which prior? Both equally probable before", xlabel="share of jump in the data")
    axis.set(ylabel="P(jump | y)", ylim=(-0.03, 1.03))
    axis.legend(frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
