"""Denoising of photographs at a signal-to-noise ratio of one (figure 3 of the 2015 paper).

A U-Net is fitted to windows from the sides of two photographs. Windows from their middles are
observed, in a NumPyro program, with noise of the standard deviation of the images. The posterior
draws are denoised images, and their mean is the estimate of minimal squared error.

Expected result: the draws are as sharp as photographs and consistent with the observations; their
mean has a smaller error than any draw, and than the optimal linear filter of single pixels, which
only reduces contrast.

The photographs are the two included in scikit-learn; `--data FOLDER` uses CIFAR-10.

    python examples/photographs.py            about ten minutes on two cores
    python examples/photographs.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import images

import diffppl as dp


def load(folder: pathlib.Path | None, side: int) -> tuple[dp.data.AbstractSource, np.ndarray]:
    """Return the source of training images, and four held-out images."""
    if folder is not None:
        train, test = dp.data.cifar10(folder)
        return dp.data.Flipped(train.images), test.images[:4]
    train, test = images.photographs()
    windows = [middle[top : top + side, :side] for middle in test for top in (80, 130)]
    return dp.data.Flipped(dp.data.Crops(train, (side, side))), np.stack(windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--data", type=pathlib.Path, metavar="FOLDER", help="CIFAR-10")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    side, num_steps, iterations = (8, 10, 4) if args.tiny else (32, 100, 2_000)
    sweeps, num_draws = (2, 2) if args.tiny else (30, 16)

    source, truths = load(args.data, side)
    shape = source.event_shape
    model = images.fit(
        images.unet(shape, tiny=args.tiny, channel_axis=-1),
        source,
        num_steps=num_steps,
        iterations=iterations,
        highest=4.0 * np.sqrt(np.prod(shape)),
    )
    model = dp.clipped(model, 0, 256)
    noise = float(model.scaling.scale)  # the standard deviation of the images

    def program(y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(x, noise).to_event(3), obs=y)

    settings = {"num_chains": 1, "num_samples": num_draws, "progress_bar": False}
    posterior = dp.Posterior(program, dp.SplitGibbs(sweeps), **settings)
    rng, rows = np.random.default_rng(0), []
    print(f"{'':12}root mean square error, in grey levels, of")
    print(f"{'':12}{'seen':>8}{'shrunk':>8}{'mean':>8}{'one draw':>10}")
    for i, truth in enumerate(truths + 0.5):
        y = truth + noise * rng.normal(size=shape)
        posterior.run(jax.random.key(4), y=jnp.asarray(y))
        draws = np.asarray(posterior.get_samples()["x"])
        shrunk = (y + float(model.scaling.loc)) / 2
        guesses = (y, shrunk, draws.mean(axis=0), draws[0])
        errors = [float(np.sqrt(np.mean((guess - truth) ** 2))) for guess in guesses]
        print(f"image {i + 1:<6}{errors[0]:8.1f}{errors[1]:8.1f}{errors[2]:8.1f}{errors[3]:10.1f}")
        rows.append([truth, y, draws[0], draws[1], draws.mean(axis=0)])
    free = np.asarray(dp.sample(jax.random.key(5), model, (len(rows),)))

    titles = [
        "held out",
        "noise added",
        "posterior draw",
        "another",
        "posterior mean",
        "prior draw",
    ]
    figure, axes = plt.subplots(len(rows), 6, figsize=(10, 7), layout="constrained")
    for line, row, prior in zip(axes, rows, free, strict=True):
        for axis, image in zip(line, [*row, prior], strict=True):
            axis.imshow(np.clip(image / 255, 0, 1))
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(args.output / "photographs.png", dpi=110)
    print(f"wrote {args.output / 'photographs.png'}")


if __name__ == "__main__":
    main()
