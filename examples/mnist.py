"""Handwritten digits, drawn anew (figure App.1 of the 2015 paper).

A dense network learns MNIST, as in the paper. Beside each of the first samples stands the training
digit that is nearest to it: samples that were copies would show.

MNIST is downloaded by scikit-learn; `--data FILE` takes it from an `.npz` with `x_train`, images of
shape (n, 28, 28) and levels 0 to 255. A fit that was stopped goes on where it was, and a fitted
model that lies in the folder of the output is taken as it is.

    python examples/mnist.py            about twenty minutes on two cores
    python examples/mnist.py --tiny     seconds, on scikit-learn's small digits
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import diffppl as dp


def load(path: pathlib.Path | None, *, tiny: bool) -> np.ndarray:
    """Images to fit, levels 0..255."""
    if tiny:
        return np.minimum(load_digits().images * 16, 255).astype(np.uint8)
    if path is None:
        return dp.data.mnist()[0].images
    with np.load(path, allow_pickle=False) as file:
        return file["x_train"]


def fit(train: np.ndarray, output: pathlib.Path, *, tiny: bool) -> dp.DiffusionModel:
    """Four dense layers; the model is kept in the output folder."""
    path = output / "mnist.dppl"
    if path.exists() and not tiny:
        return dp.load(path)
    num_steps, width, iterations = (10, 16, 10) if tiny else (1_000, 768, 12_000)
    shape = train.shape[1:]
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(
            dp.schedules.LogSNRLinear(num_steps, noise_to_signal=(0.003, 4.0 * shape[0]))
        ),
        network=dp.networks.MLP(shape, width, depth=4, key=jax.random.key(0)),
        event_shape=shape,
    )
    model = dp.fit(
        jax.random.key(1),
        model,
        dp.data.Dequantised(train),
        num_iterations=iterations,
        batch_size=256,
        optimizer=dp.default_optimizer(iterations, learning_rate=1e-3),
        checkpoints=None if tiny else dp.Checkpoints(output / "mnist_run", keep=1),
    ).model
    if not tiny:
        dp.save(path, model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--data", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    train = load(args.data, tiny=args.tiny)
    model = fit(train, args.output, tiny=args.tiny).clipped(0, 256)

    samples = np.asarray(dp.sample(jax.random.key(2), model, (110,)))
    search = NearestNeighbors(n_neighbors=2).fit(train.reshape(len(train), -1))
    near, index = search.kneighbors(samples.reshape(len(samples), -1), n_neighbors=1)
    apart = search.kneighbors(train[:200].reshape(200, -1))[0][:, 1]
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
