"""A model of dead-leaves images, discs that occlude one another (figure 4 of the 2015 paper).

Dead-leaves images share statistics of photographs: objects of all sizes with sharp edges that
occlude one another. New images are generated during the fit, so the model cannot overfit. The bound
is compared with the log-density of a Gaussian with the full covariance of small windows, which
models the power spectrum but not the edges.

Expected result: discs that occlude one another, mostly small ones, with a uniform grey level each.

    python examples/dead_leaves.py            about ten minutes on two cores
    python examples/dead_leaves.py --paper    with the multi-scale convolutions of the paper
    python examples/dead_leaves.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from common import images

import diffppl as dp

GREYS = dist.DiscreteUniform(0, 255)
RADII = (1.5, 16.0)  # pixels, with density proportional to r^-3
WINDOW = 8  # side of the windows of the Gaussian baseline, in pixels


def leaves(side: int) -> dp.data.DeadLeaves:
    return dp.data.DeadLeaves((side, side), RADII, grey=GREYS)


def dequantised(side: int, seed: int, num: int) -> np.ndarray:
    """Draw images with uniform noise of one grey level."""
    batch = eqx.filter_jit(lambda key: dp.data.Dequantised(leaves(side)).batch(key, num)[0])
    return np.asarray(batch(jax.random.key(seed)))


def gaussian_bits(num: int) -> float:
    """Return the negative log2-density per pixel of a Gaussian fitted to windows."""
    train, test = (dequantised(WINDOW, seed, num).reshape(num, -1) for seed in (3, 4))
    fitted = scipy.stats.multivariate_normal(train.mean(axis=0), np.cov(train.T))
    return float(-np.mean(fitted.logpdf(test)) / WINDOW**2 / np.log(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--paper", action="store_true", help="the network of the paper")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    side, num_steps, iterations = (8, 10, 4) if args.tiny else (32, 200, 2_000)
    num_test, num_windows = (8, 500) if args.tiny else (200, 20_000)

    source = leaves(side)
    if args.paper:
        network = dp.networks.MultiScaleConv((side, side), num_steps, key=jax.random.key(0))
    else:
        network = images.unet((side, side), tiny=args.tiny)
    model = images.fit(
        network,
        source,
        num_steps=num_steps,
        iterations=iterations,
        highest=4.0 * side,
    )
    bound = dp.elbo(jax.random.key(2), model, dequantised(side, 5, num_test))
    bits = dp.likelihood.bits_per_dim(bound, (side, side))
    print(f"bits per pixel of fresh images: {bits}")
    print(f"Gaussian of {WINDOW} x {WINDOW} windows: {gaussian_bits(num_windows):.3f}")

    samples = np.asarray(dp.sample(jax.random.key(6), dp.clipped(model, 0, 256), (20,)))
    rows = {"made": dequantised(side, 7, 20), "learned": samples}
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    for panel, (name, pixels) in zip(figure.subfigures(1, 2), rows.items(), strict=True):
        panel.suptitle(f"dead leaves, {name}")
        for axis, image in zip(panel.subplots(4, 5).flat, pixels, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
    figure.savefig(args.output / "dead_leaves.png", dpi=110)
    print(f"wrote {args.output / 'dead_leaves.png'}")


if __name__ == "__main__":
    main()
