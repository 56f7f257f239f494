"""Fingerprint of a training run, by which a folder of checkpoints is recognised.

It holds the initial model of the run, and names or checksums of everything else that determines its
numbers. A run continues with that model: a scaling that another machine computes from the same data
may differ in its last digit.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TypeGuard, final

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..checks.arguments import is_key
from ..io.codec import Describer
from ..io.serialisation import load, save
from ..model import DiffusionModel
from ..predictions.variance import only_fitted
from .losses import AbstractLoss

FILE = "run.dppl"


@final
class RunConfig(eqx.Module):
    """Everything that determines the numbers of a run.

    Attributes:
        model: the initial model.
        key: as text.
        data, loss: their classes and checksums.
        trainable, optimizer: names of the trained arrays, and of those of the optimiser's state.
        num_iterations: if the optimiser depends on it; None otherwise.
        ema_decay, batch_size: as passed to `fit`.
    """

    model: DiffusionModel
    key: str
    data: str
    loss: str
    trainable: list[str]
    optimizer: list[str]
    num_iterations: int | None
    ema_decay: float | None
    batch_size: int

    @staticmethod
    def of(
        key: Array,
        model: DiffusionModel,
        mask: PyTree[bool],
        data: PyTree,
        *,
        loss: AbstractLoss,
        optimizer: optax.GradientTransformation,
        ema_decay: float | None,
        batch_size: int,
        num_iterations: int | None,
    ) -> "RunConfig":
        """Return the settings of a run; `mask` selects the trained leaves of the model."""
        params = eqx.filter(model, mask)
        return RunConfig(
            model=model,
            key=f"{key.dtype} {jax.random.key_data(key).tolist()}",
            data=fingerprint(data),
            loss=fingerprint(loss),
            trainable=names(params),
            optimizer=names(eqx.filter_eval_shape(optimizer.init, params)),
            num_iterations=num_iterations,
            ema_decay=None if ema_decay is None else float(ema_decay),
            batch_size=batch_size,
        )

    def save(self, folder: Path) -> None:
        """Write the file of the run in a folder."""
        save(folder / FILE, self, needs_like=True)

    @staticmethod
    def load(folder: Path, model: PyTree = None) -> "RunConfig":
        """Read the file of the run in a folder; `model` is the `like` of `load`.

        Raises:
            LoadError: the file is damaged, or `model` is required or does not fit (MismatchError).
        """
        return load(folder / FILE, like=SimpleNamespace(model=model))

    def differences(self, earlier: "RunConfig") -> list[str]:
        """Return in words how this run differs from an earlier one, apart from rounding."""
        changes = []
        for name in (field.name for field in dataclasses.fields(self)):
            then, now = getattr(earlier, name), getattr(self, name)
            if name == "model":
                if not eqx.tree_equal(then, now, rtol=1e-4, atol=1e-6):
                    changes.append("model differs in its structure or its numbers")
            elif name == "num_iterations":
                # The learning rate of the default optimiser depends on the number of iterations.
                if now not in (None, then):
                    changes.append(
                        f"num_iterations was {then}, on which the learning rate depends (to extend "
                        f"it to {now}, pass optimizer=default_optimizer({now}): the learning rate "
                        "is then that of the longer run)"
                    )
            elif then != now:
                is_short = len(f"{then}{now}") < 80
                changes.append(f"{name} was {then} and is {now}" if is_short else f"{name} differs")
        return changes

    def trained_model(self, params: list[Array], variance: list[Array]) -> DiffusionModel:
        """Return the model with other trained arrays and another fitted variance."""
        replaced = [*self.trainable, *names(only_fitted(self.model))]
        arrays = dict(zip(replaced, [*params, *variance], strict=True))
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: arrays.get(name_of(path, leaf), leaf), self.model
        )


def is_stored(leaf: object) -> TypeGuard[Array]:
    """Return whether a leaf is an array (or its shape) that is not empty, as Orbax requires."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and leaf.size > 0


def name_of(path: tuple, leaf: object) -> str:
    """Return path, dtype and shape of an array in a tree; "" for what is not stored."""
    if not is_stored(leaf):
        return ""
    return f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"


def names(tree: PyTree) -> list[str]:
    """Return the names of the arrays in a tree, in order."""
    return [name for pair in jax.tree_util.tree_leaves_with_path(tree) if (name := name_of(*pair))]


def fingerprint(value: PyTree) -> str:
    """Return the class of a value and a checksum of its classes, settings and arrays."""
    value = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, value)
    describer = Describer(foreign=True)
    text = json.dumps(describer.describe(value, type(value).__name__))
    checksum = zlib.crc32(text.encode())
    for array in describer.arrays:
        checksum = zlib.crc32(f"{array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, checksum)
    return f"{type(value).__name__} {checksum:08x}"
