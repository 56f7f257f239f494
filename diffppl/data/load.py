"""Loaders of standard image data sets. Nothing is read or downloaded before they are called.

Images have levels 0..255 and dtype uint8, as required by `Dequantised`.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ..checks.arguments import check_path


class Labelled(NamedTuple):
    """Images and their labels."""

    images: UInt8[np.ndarray, "n height width *channels"]
    labels: Int[np.ndarray, " n"]


def mnist(
    *, data_home: str | os.PathLike | None = None, cache: bool = True
) -> tuple[Labelled, Labelled]:
    """Load MNIST, digits of 28 x 28 pixels: 60,000 for training and 10,000 for testing.

    They are in the usual order. The first call downloads them from openml.org with scikit-learn's
    `fetch_openml`; later calls read its cache. Requires scikit-learn (`pip install diffppl[data]`).

    Args:
        data_home: folder of the cache; scikit-learn's default if None.
        cache: whether to keep the downloaded files.

    Returns:
        Training data and test data, each `(images, labels)`.

    Raises:
        ImportError: scikit-learn is not installed.
        RuntimeError: the download failed, or its data have unexpected shapes.

    Example:
        >>> train, test = dp.data.mnist()
        >>> source = dp.data.Dequantised(train.images)

    References:
        LeCun, Bottou, Bengio and Haffner 1998.
    """
    pixels, labels = _fetch("mnist_784", data_home, cache=cache)
    labels = labels.astype(np.int64)
    if pixels.shape != (70_000, 28 * 28) or labels.shape != (70_000,):
        raise RuntimeError(
            f"mnist_784 has data of shape {pixels.shape} and labels of shape {labels.shape}, where "
            "(70000, 784) and (70000,) were expected. Clear the cache and download it again."
        )
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    return Labelled(images[:60_000], labels[:60_000]), Labelled(images[60_000:], labels[60_000:])


def cifar10(folder: str | os.PathLike) -> tuple[Labelled, Labelled]:
    """Load CIFAR-10, photographs of 32 x 32 pixels in ten classes, from local files.

    Args:
        folder: contains `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, the "binary
            version" of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked.

    Returns:
        Training data and test data, each `(images, labels)`; images have shape `(n, 32, 32, 3)`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the size of a file is not a multiple of that of a record.

    Example:
        >>> train, test = dp.data.cifar10("cifar-10-batches-bin")
        >>> source = dp.data.Dequantised(dp.data.Flipped(train.images))

    References:
        Krizhevsky 2009.
    """
    folder = pathlib.Path(check_path("folder", folder))
    train = [_cifar_records(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    return _cifar(np.concatenate(train)), _cifar(_cifar_records(folder / "test_batch.bin"))


RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane


def _cifar_records(path: pathlib.Path) -> UInt8[np.ndarray, "n 3073"]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: folder must hold the binary version of CIFAR-10, unpacked, from "
            "https://www.cs.toronto.edu/~kriz/cifar.html."
        )
    numbers = np.fromfile(path, np.uint8)
    if numbers.size == 0 or numbers.size % RECORD:
        raise ValueError(
            f"{path} has {numbers.size} bytes, which is not a multiple of {RECORD}, the size of a "
            "record: it is truncated, or not a file of the binary version."
        )
    return numbers.reshape(-1, RECORD)


def _cifar(records: UInt8[np.ndarray, "n 3073"]) -> Labelled:
    # The files store colour planes; images have their channels last.
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Labelled(np.ascontiguousarray(images), records[:, 0].astype(np.int64))


def _fetch(
    name: str, data_home: str | os.PathLike | None, *, cache: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return data and target of scikit-learn's `fetch_openml`, with a remedy in its errors."""
    try:
        from sklearn.datasets import fetch_openml  # optional, and slow to import
    except ImportError as error:
        raise ImportError(
            "this data set requires scikit-learn: pip install diffppl[data], or pip install "
            "scikit-learn."
        ) from error
    try:
        found: Any = fetch_openml(name, version=1, data_home=data_home, cache=cache, as_frame=False)
    except (OSError, ValueError) as error:  # no network, or an error of the server
        raise RuntimeError(
            f"{name} could not be downloaded from openml.org ({type(error).__name__}: {error}). "
            "Try again where there is a network, or pass data_home=, a folder that holds it."
        ) from error
    return np.asarray(found.data), np.asarray(found.target)
