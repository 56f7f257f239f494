"""Blind deblurring: the joint posterior of a digit and the width of its blur.

Each held-out digit is observed with a Gaussian blur of unknown width and a little noise. The width
is a second latent of the program. A single image identifies it, because the deblurred image is
probable under the prior at the right width only: a smaller width leaves it smooth, a larger one
adds ringing.

Expected result: the posteriors of the widths concentrate at the true values, and the draws vary
where the blur has removed detail. The prior is that of the quickstart, and is fitted only if its
file does not exist.

    python examples/deblurring.py            about three minutes on two cores
    python examples/deblurring.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import digits
from quickstart import load, show

import diffppl as dp

NOISE = 0.5  # standard deviation in grey levels, of which there are 17
WIDTHS = {0: 0.6, 1: 0.9, 7: 1.2, 12: 1.6}  # of the blur, in pixels: test digit -> width


def blur(x, width):
    """Apply a separable Gaussian blur with weights normalised at the border."""
    place = jnp.arange(8)
    weights = jnp.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return weights @ x @ weights.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    particles = 50 if args.tiny else 500
    model = digits.prior(args.output, tiny=args.tiny)

    def program(y=None):
        x = numpyro.sample("x", model())
        width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(blur(x, width), NOISE).to_event(2), obs=y)

    rng = np.random.default_rng(0)
    test = load()[1]
    rows = []
    print(
        f"\n{'width of the blur':20}{'truth':>8}{'mean':>8}{'sd':>8}{'error of x':>14}{'of y':>8}"
    )
    for index, true_width in WIDTHS.items():
        truth = test[index]
        y = np.asarray(blur(truth, true_width)) + NOISE * rng.normal(size=(8, 8))
        posterior = dp.Posterior(
            program, dp.TwistedSMC(particles), num_samples=particles, progress_bar=False
        )
        posterior.run(jax.random.key(index), y=jnp.asarray(y))
        samples = {name: np.asarray(value) for name, value in posterior.get_samples().items()}
        width, x = samples["width"], samples["x"]
        # Errors of the posterior mean and of the observation.
        error, before = (np.sqrt(np.mean((z - truth) ** 2)) for z in (x.mean(axis=0), y))
        print(
            f"digit {index:<14}{true_width:8.2f}{width.mean():8.2f}{width.std():8.2f}"
            f"{error:14.2f}{before:8.2f}"
        )
        rows.append((truth, y, x, width, true_width))
    print("errors are root mean squares, in grey levels")
    draw(rows).savefig(args.output / "deblurring.png", dpi=110)
    print(f"wrote {args.output / 'deblurring.png'}")


def draw(rows) -> plt.Figure:
    """Plot a row per digit: truth, observation, posterior of x, posterior of the width."""
    figure = plt.figure(figsize=(12, 1.5 * len(rows) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(rows), 10)
    for i, (truth, y, x, width, true_width) in enumerate(rows):
        panels = {"truth": truth, "seen": y, "mean": x.mean(axis=0)}
        panels |= {f"draw {j + 1}": x[j] for j in range(3)}
        for j, (name, image) in enumerate(panels.items()):
            show(figure.add_subplot(grid[i, j]), image, name if i == 0 else "")
        axis = figure.add_subplot(grid[i, 6])
        axis.imshow(x.std(axis=0), cmap="magma", vmin=0, vmax=4)
        axis.set(xticks=[], yticks=[])
        axis.set_title("sd, 0 to 4" if i == 0 else "", fontsize=9)
        axis = figure.add_subplot(grid[i, 7:])
        bins = np.linspace(0, 2.5, 101)
        axis.hist(width, bins, density=True, color="C0", alpha=0.5, label="posterior")
        axis.axvline(true_width, color="C3", label="truth")
        prior = np.exp(np.asarray(dist.LogNormal(0.0, 0.5).log_prob(bins[1:])))
        axis.plot(bins[1:], prior, "k:", label="prior")
        axis.set(xlim=(0, 2.5), yticks=[])
        if i == 0:
            axis.set_title("width of the blur, in pixels", fontsize=9)
            axis.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
