"""Fingerprint of a training run, by which a folder of checkpoints is recognised.

`run.dppl`, a file of `serialisation`, holds the initial model of the run, and names or checksums of
everything else that determines its numbers. A run continues with the model of that file: a scaling
that another machine computes from the same data may differ in its last digit.
"""

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..checks.arguments import is_key
from ..io.codec import Describer, LoadError
from ..io.serialisation import load, save
from ..model import DiffusionModel
from ..predictions.variance import only_fitted

FILE = "run.dppl"

Record = dict[str, Any]


def is_kept(leaf: Any) -> bool:
    """Whether a leaf is stored: an array (or its shape) that is not empty, as Orbax requires."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and leaf.size > 0


def name_of(path: Any, leaf: Any) -> str:
    """Return the path, dtype and shape of an array in a tree."""
    return f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"


def names(tree: Any) -> list[str]:
    """Return the names of the stored leaves, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [name_of(*pair) for pair in leaves if is_kept(pair[1])]


def fingerprint(value: Any) -> str:
    """Return the class of a value and a checksum of its classes, settings and arrays."""
    value = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, value)
    describer = Describer(foreign=True)
    text = json.dumps(describer.describe(value, type(value).__name__))
    checksum = zlib.crc32(text.encode())
    for array in describer.arrays:
        checksum = zlib.crc32(f"{array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return f"{type(value).__name__} {checksum:08x}"


def record(
    key: Array,
    model: DiffusionModel,
    mask: PyTree[bool],
    optimizer: optax.GradientTransformation,
    *,
    num_iterations: int | None,
    **options: Any,
) -> Record:
    """Return everything that determines the numbers of a run.

    Args:
        key, model, mask, optimizer: those of the run.
        num_iterations: of the run, if the optimiser depends on it; None otherwise.
        **options: other arguments of `fit`, by their names.
    """
    params = eqx.filter(model, mask)
    return {
        "model": model,
        "key": f"{key.dtype} {jax.random.key_data(key).tolist()}",
        "trainable": names(params),
        "variance": names(only_fitted(model)),
        "optimizer": names(eqx.filter_eval_shape(optimizer.init, params)),
        "num_iterations": num_iterations,
        **{name: _entry(value) for name, value in options.items()},
    }


def _entry(value: Any) -> Any:
    return value if isinstance(value, int | float | None) else fingerprint(value)


def load_or_write_config(folder: Path, record: Record) -> Any:
    """Return the initial model of the run in a folder; in an empty folder, write `record`.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder holds another run or other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # fails now, not after training
    except OSError as error:
        what = f"checkpoints.folder cannot be written: {error.strerror}"
        raise OSError(error.errno, what, str(folder)) from error
    path = folder / FILE
    if not path.exists():
        if any(not name.startswith(".") for name in os.listdir(folder)):
            raise ValueError(
                f"checkpoints.folder={str(folder)!r} holds other files: give the run a folder of "
                "its own."
            )
        save(path, record, needs_like=True)
        return record["model"]
    try:
        old = load(path, like=record)
    except LoadError as error:
        _raise_other_run(folder, f"model differs ({error})")
    for name, now in record.items():
        then = old.get(name)
        if name == "model":
            if not eqx.tree_equal(then, now, rtol=1e-4, atol=1e-6):  # equal up to rounding
                _raise_other_run(folder, "model differs in its structure or its numbers")
        elif name == "num_iterations":
            # The learning rate of the default optimiser depends on the number of iterations.
            if now not in (None, then):
                _raise_other_run(
                    folder,
                    f"num_iterations was {then}, on which the learning rate depends. (To extend it "
                    f"to {now}, pass optimizer=default_optimizer({now}): the learning rate is then "
                    "that of the longer run.)",
                )
        elif then != now:
            is_short = len(f"{then}{now}") < 80
            change = f"{name} was {then} and is {now}" if is_short else f"{name} differs"
            _raise_other_run(folder, change)
    return old["model"]


def _raise_other_run(folder: Path, what: str) -> NoReturn:
    raise ValueError(
        f"checkpoints.folder={str(folder)!r} holds another run: {what}. Pass what that run was "
        "started with, or another folder."
    )
