"""The data of the image rows: from a folder, from loaders, or stand-ins of the same kind.

The folder of `--data` can contain

    mnist.npz             x_train, x_test: (n, 28, 28), levels 0..255
    binarized_mnist.npz   x_train_packed, x_valid_packed, x_test_packed: np.packbits of (n, 784)
    cifar10_subset.npz    x_train, x_test: (n, 32, 32, 3), levels 0..255
    bark_texture.npz      images: (n, height, width), levels 0..255; class_id: (n,)

Without it MNIST is downloaded by `dp.data.mnist`, and bark and CIFAR-10 have stand-ins. A tiny run
always uses stand-ins: the digits and photographs included in scikit-learn.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

import diffppl as dp

from .row import Run, Size

STRIDE = 37  # pixels between windows of the photographs


class Split(NamedTuple):
    """Training and held-out images, with the name of the data set."""

    train: np.ndarray
    test: np.ndarray
    name: str


def _load(run: Run, name: str) -> dict[str, np.ndarray] | None:
    if run.size is Size.TINY or run.folder is None:
        return None
    with np.load(run.folder / name, allow_pickle=False) as file:
        return dict(file)


def _digits() -> np.ndarray:
    """Return the 8 x 8 digits of scikit-learn as levels 0..255."""
    return np.minimum(load_digits().images * 16, 255).astype(np.uint8)


def _photographs() -> np.ndarray:
    return np.stack(load_sample_images().images)


def mnist(run: Run) -> Split:
    """Load MNIST, or its stand-in."""
    if run.size is Size.TINY:
        images = _digits()
        return Split(images[:1_500], images[1_500:], "scikit-learn's digits, 8 x 8")
    found = _load(run, "mnist.npz")
    if found is None:
        train, test = dp.data.mnist()
        return Split(train.images, test.images, "MNIST")
    return Split(found["x_train"], found["x_test"], "MNIST")


def binarized_mnist(run: Run) -> Split:
    """Load the fixed binarisation of MNIST, or binarise MNIST once at random by its levels."""
    found = _load(run, "binarized_mnist.npz")
    if found is not None:
        parts = [
            np.unpackbits(found[f"x_{name}_packed"], axis=1).reshape(-1, 28, 28)
            for name in ("train", "valid", "test")
        ]
        return Split(np.concatenate(parts[:2]), parts[2], "fixed binarisation, train and valid")
    rng, digits = np.random.default_rng(0), mnist(run)
    train, test = (
        (rng.uniform(0, 255, size=images.shape) < images).astype(np.uint8)
        for images in (digits.train, digits.test)
    )
    return Split(train, test, f"{digits.name}, binarised with seed 0")


def cifar10(run: Run) -> Split:
    """Load CIFAR-10, or 32 x 32 windows of photographs."""
    found = _load(run, "cifar10_subset.npz")
    if found is not None:
        train, test = found["x_train"], found["x_test"]
        return Split(train, test, f"{len(train):,} and {len(test):,} images of CIFAR-10")
    photographs = _photographs()
    height, width = photographs.shape[1:3]
    places = [(i, j) for i in range(0, height - 32, STRIDE) for j in range(0, width - 32, STRIDE)]
    images = np.stack([p[i : i + 32, j : j + 32] for p in photographs for i, j in places])
    half = len(images) // 2
    return Split(images[:half], images[half:], "windows of two photographs, a stand-in")


def bark(run: Run) -> Split:
    """Load textures, with the last image of each class held out."""
    found = _load(run, "bark_texture.npz")
    if found is None:
        grey = _photographs().mean(axis=-1).astype(np.uint8)
        return Split(grey[:1], grey[1:], "two photographs, a stand-in")
    images, classes = found["images"], found["class_id"]
    last = np.append(classes[1:] != classes[:-1], True)
    return Split(images[~last], images[last], f"{(~last).sum()} textures, {last.sum()} held out")
