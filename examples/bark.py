"""Inpainting of a large hole in a texture (figure 5 of the 2015 paper).

A U-Net is fitted to small windows of textures. Without attention it is fully convolutional, so the
same weights define a prior of larger images: it is used in a NumPyro program that observes, without
noise, every pixel of a whole image except a square in the middle. The posterior draws fill the
square.

Expected result: the observed pixels are reproduced exactly. Cracks at the boundary of the hole
continue into it and connect, differently in each draw, and the statistics of the filled-in pixels
match those of the pixels that were cut out.

The textures are synthetic: ridges with cracks between them. `--data FILE` uses others: an `.npz`
file with `images` of shape (n, height, width), levels 0 to 255, the last of which is held out.

    python examples/bark.py            about ten minutes on two cores
    python examples/bark.py --tiny     seconds, to see that it runs
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


def load(path: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the training textures and the held-out one."""
    if path is None:
        found = np.stack([images.ridges(seed, 480, 640) for seed in range(4)])
    else:
        with np.load(path, allow_pickle=False) as file:
            found = file["images"]
    return found[:-1], found[-1]


def roughness(pixels: np.ndarray) -> tuple[float, float]:
    """Return the standard deviation of the grey levels and of horizontal pixel differences."""
    return float(pixels.std()), float(np.diff(pixels, axis=-1).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--data", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    window, side, hole = (16, 24, 10) if args.tiny else (32, 160, 100)
    num_steps, iterations, repeats = (10, 4, 1) if args.tiny else (200, 2_000, 5)

    train, picture = load(args.data)
    network = images.unet((window, window), tiny=args.tiny, attention_levels=0)
    fitted = images.fit(
        network,
        dp.data.Crops(train, (window, window)),
        num_steps=num_steps,
        iterations=iterations,
        highest=4.0 * side,  # the noise level required by the whole image
    )
    model = dp.DiffusionModel(
        fitted.process,
        fitted.network.resized((side, side)),
        (side, side),
        prediction=dp.predictions.Velocity(fitted.prediction.variance.pooled()),
        scaling=fitted.scaling,
    )
    model = dp.clipped(model, 0, 256)

    missing = np.zeros((side, side), bool)
    start = (side - hole) // 2
    missing[start : start + hole, start : start + hole] = True
    seen = np.flatnonzero(~missing)

    def program(y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Delta(x.ravel()[seen], event_dim=1), obs=y)

    truth = picture[:side, :side] + 0.5
    posterior = dp.Posterior(program, dp.Replacement(repeats), num_chains=1, num_samples=2)
    posterior.run(jax.random.key(2), y=jnp.asarray(truth.ravel()[seen]))
    draws = np.asarray(posterior.get_samples()["x"])

    off = np.abs(draws - truth.astype(draws.dtype)).reshape(len(draws), -1)[:, seen].max()
    print(f"seen pixels off by {off:g}")
    print(f"\n{'':20}sd of the grey levels    of steps between pixels")
    inside = np.s_[..., start : start + hole, start : start + hole]
    for name, pixels in {"cut out": truth[inside], "filled in": draws[inside]}.items():
        level, step = roughness(pixels)
        print(f"{name:20}{level:21.1f}    {step:23.1f}")

    noise = np.random.default_rng(0).normal(size=truth.shape) * truth.std() + truth.mean()
    panels = {
        "a picture never seen": truth,
        "what is observed": np.where(missing, noise, truth),
        **{f"posterior draw {i + 1}": x for i, x in enumerate(draws)},
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.6), layout="constrained")
    for axis, (name, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(name)
        axis.set(xticks=[], yticks=[])
    figure.savefig(args.output / "bark.png", dpi=110)
    print(f"wrote {args.output / 'bark.png'}")


if __name__ == "__main__":
    main()
