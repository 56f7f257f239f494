"""Inpainting: the posterior of a digit from noiseless observations of half its pixels.

Half the pixels of each held-out digit are observed without noise: the top, the left, or a random
half. The posterior draws are whole digits with exactly these pixels. The coverage of the posterior
is then measured on further digits: 90 % intervals should contain 90 % of the hidden pixels.

Expected result: the observed pixels are reproduced exactly, with standard deviation 0. The draws
agree where the observed half determines the rest, and are different digits, rather than a blurred
average, where it does not. The prior is that of the quickstart, and is fitted only if its file does
not exist.

    python examples/inpainting.py            about three minutes on two cores
    python examples/inpainting.py --tiny     seconds, to see that it runs
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

PIXELS = np.arange(64).reshape(8, 8)
HALVES = {
    "top": PIXELS[:4].ravel(),
    "left": PIXELS[:, :4].ravel(),
    "random": np.sort(np.random.default_rng(0).choice(64, 32, replace=False)),
}
SHOWN = {"top": 3, "left": 8, "random": 15}  # indices of the test digits in the figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    particles, num_checks = (20, 1) if args.tiny else (400, 9)
    model, test = digits.prior(args.output, tiny=args.tiny), load()[1]

    def program(seen, y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Delta(x.ravel()[seen], event_dim=1), obs=y)

    def infer(truth, seen) -> np.ndarray:
        posterior = dp.Posterior(program, dp.TwistedSMC(particles), progress_bar=False)
        posterior.run(jax.random.key(0), jnp.asarray(seen), y=jnp.asarray(truth.ravel()[seen]))
        return np.asarray(posterior.get_samples()["x"])

    rows = {half: (test[SHOWN[half]], infer(test[SHOWN[half]], HALVES[half])) for half in HALVES}
    for half, (truth, x) in rows.items():
        off = np.abs(x - truth.astype(x.dtype)).reshape(-1, 64)[:, HALVES[half]].max()
        print(f"{half} seen: {len(x)} draws, seen pixels off by {off:g}")
    # Coverage on other digits.
    inside = {0.5: [], 0.9: []}
    for i, truth in enumerate(test[100 : 100 + num_checks]):
        seen = HALVES[list(HALVES)[i % 3]]
        x, hidden = infer(truth, seen).reshape(-1, 64), np.setdiff1d(PIXELS, seen)
        for level, found in inside.items():
            low, high = np.quantile(x[:, hidden], [0.5 - level / 2, 0.5 + level / 2], axis=0)
            found.append(np.mean((low <= truth.ravel()[hidden]) & (truth.ravel()[hidden] <= high)))
    print(f"\nhidden pixels of {num_checks} other digits inside their intervals")
    for level, found in inside.items():
        error = np.std(found) / len(found) ** 0.5  # over digits, whose pixels are dependent
        print(f"  {100 * level:.0f} % interval: {100 * np.mean(found):.0f} ± {100 * error:.0f} %")
    draw(rows).savefig(args.output / "inpainting.png", dpi=110)
    print(f"wrote {args.output / 'inpainting.png'}")


def draw(rows) -> plt.Figure:
    """Plot a row per digit: truth, observation, mean, standard deviation, draws."""
    figure, axes = plt.subplots(
        len(rows), 10, figsize=(12, 1.35 * len(rows) + 0.3), layout="constrained"
    )
    for row, (half, (truth, x)) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(f"{half} seen")
        seen = np.full(64, np.nan)
        seen[HALVES[half]] = truth.ravel()[HALVES[half]]
        panels = {"truth": truth, "seen": seen.reshape(8, 8), "mean": x.mean(axis=0)}
        for axis, (name, image) in zip(row, panels.items(), strict=False):
            show(axis, image, name)
        row[3].imshow(x.std(axis=0), cmap="magma", vmin=0, vmax=6)
        row[3].set_title("sd, 0 to 6", fontsize=9)
        row[3].set(xticks=[], yticks=[])
        chosen = np.random.default_rng(0).choice(len(x), 6, replace=False)
        for axis, image in zip(row[4:], x[chosen], strict=True):
            show(axis, image, "draw")
    return figure


if __name__ == "__main__":
    main()
