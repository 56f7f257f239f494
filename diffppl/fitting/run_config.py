"""What a fit is, in writing: enough to tell whether a folder holds the same one.

`run.dppl`, a file of `serialisation`, has the model that the run starts from, and in a few words
all else that its numbers depend on. A run goes on with the numbers of that file: a scaling that
another machine computes anew from the data may differ in its last digit.
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
    """Whether a leaf is written: an array (or its shape) that is not empty, which Orbax has not."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and leaf.size > 0


def name_of(path: Any, leaf: Any) -> str:
    """Place, dtype and shape of an array in a tree."""
    return f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"


def names(tree: Any) -> list[str]:
    """The name of each leaf that is written, in their order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [name_of(*pair) for pair in leaves if is_kept(pair[1])]


def fingerprint(value: Any) -> str:
    """A checksum of everything in a value: classes, settings and numbers."""
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
    """What the numbers of a run depend on.

    Args:
        key, model, mask, optimizer: those of the run.
        num_iterations: of the run, if the optimiser depends on it; else None.
        options: the others, by what the user calls them.
    """
    params = eqx.filter(model, mask)
    return {
        "model": model,
        "key": f"{key.dtype} {jax.random.key_data(key).tolist()}",
        "trainable": names(params),
        "variance": names(only_fitted(model)),
        "optimizer": names(eqx.filter_eval_shape(optimizer.init, params)),
        "num_iterations": num_iterations,
        **{name: _in_words(value) for name, value in options.items()},
    }


def _in_words(value: Any) -> Any:
    return value if isinstance(value, int | float | None) else fingerprint(value)


def begun(folder: Path, record: Record) -> Any:
    """The model that the run in a folder started from; if it has none, that of `record`, written.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it holds another run, or something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # better known now
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
        _refuse(folder, f"its model is another ({error})")
    for name, now in record.items():
        then = old.get(name)
        if name == "model":
            if not eqx.tree_equal(then, now, rtol=1e-4, atol=1e-6):  # the same but for rounding
                _refuse(folder, "model differs in its structure or its numbers")
        elif name == "num_iterations":
            # What the default optimiser does at iteration i depends on how many there will be.
            if now not in (None, then):
                _refuse(
                    folder,
                    f"num_iterations was {then}, on which the learning rate depends. (To go on to "
                    f"{now}, pass optimizer=default_optimizer({now}): the learning rate is then "
                    "that of the longer run.)",
                )
        elif then != now:
            is_short = len(f"{then}{now}") < 80
            _refuse(folder, f"{name} was {then} and is {now}" if is_short else f"{name} differs")
    return old["model"]


def _refuse(folder: Path, what: str) -> NoReturn:
    raise ValueError(
        f"checkpoints.folder={str(folder)!r} holds another run: {what}. Pass what that run was "
        "started with, or another folder."
    )
