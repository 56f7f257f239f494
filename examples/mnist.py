"""Samples of a model of MNIST (figure App.1 of the 2015 paper).

A dense network is fitted to MNIST, as in the paper, here to its leading principal components, which
omit the finest detail, where a dense network is least accurate. The first samples are shown with
their nearest training digits, which would reveal memorisation.

MNIST is downloaded by scikit-learn; `--data FILE` reads it from an `.npz` file with `x_train`,
images of shape (n, 28, 28) with levels 0 to 255. An interrupted fit resumes from its last
checkpoint.

    python examples/mnist.py            about ten minutes on two cores
    python examples/mnist.py --tiny     seconds, on scikit-learn's small digits
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import diffppl as dp


def load(path: pathlib.Path | None, *, tiny: bool) -> np.ndarray:
    """Return the training images, levels 0..255."""
    if tiny:
        return np.minimum(load_digits().images * 16, 255).astype(np.uint8)
    if path is None:
        return dp.data.mnist()[0].images
    with np.load(path, allow_pickle=False) as file:
        return file["x_train"]


def fit(data: np.ndarray, output: pathlib.Path, *, tiny: bool) -> dp.DiffusionModel:
    """Fit a network of four dense layers, with periodic checkpoints."""
    num_steps, width, iterations = (10, 16, 10) if tiny else (1_000, 512, 4_000)
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.cosine(num_steps)),
        network=dp.networks.MLP(data.shape[1:], width, depth=4, key=jax.random.key(0)),
        event_shape=data.shape[1:],
        # A common scale for all components, so that the loss weights them by their variance.
        scaling=dp.Scaling.from_data(data, per_coordinate=False),
    )
    return dp.fit(
        jax.random.key(1),
        model,
        data,
        num_iterations=iterations,
        batch_size=512,
        loss=dp.losses.SimpleLoss(),
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
        checkpoints=None if tiny else dp.Checkpoints(output / "mnist_run", keep=1),
    ).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--data", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    train = load(args.data, tiny=args.tiny)
    flat = train.reshape(len(train), -1).astype(np.float32)
    directions = PCA(20 if args.tiny else 200).fit(flat)
    model = fit(directions.transform(flat), args.output, tiny=args.tiny)

    drawn = directions.inverse_transform(np.asarray(dp.sample(jax.random.key(2), model, (110,))))
    samples = np.clip(drawn, 0, 255).reshape(-1, *train.shape[1:])
    search = NearestNeighbors(n_neighbors=2).fit(flat)
    near, index = search.kneighbors(samples.reshape(len(samples), -1), n_neighbors=1)
    apart = search.kneighbors(flat[:200])[0][:, 1]
    print("mean distance to the nearest training digit, in grey levels")
    print(f"  of a sample {near.mean():.0f}, of another training digit {apart.mean():.0f}")

    figure = plt.figure(figsize=(11, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[10, 2.2])
    left.suptitle("samples")
    for axis, image in zip(left.subplots(10, 10).flat, samples[10:], strict=True):
        show(axis, image)
    right.suptitle("and nearest in training")
    pairs = zip(right.subplots(10, 2), samples, train[index[:10, 0]], strict=False)
    for line, sample, digit in pairs:
        show(line[0], sample)
        show(line[1], digit)
    figure.savefig(args.output / "mnist.png", dpi=90)
    print(f"wrote {args.output / 'mnist.png'}")


def show(axis, image):
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main()
