"""Checkpoints of a fit, from which another process can continue.

The folder of a run holds `run.dppl`, its settings (see `run_config`), and a folder for each
retained checkpoint, named by its iteration: the weights, their average, the optimiser's state, the
reverse variance and the history. Orbax writes them asynchronously and atomically: if the process is
killed during a write, the previous checkpoint remains.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, final

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..checks.arguments import check_instance, check_path, check_size
from ..io.codec import LoadError, MismatchError
from ..model import DiffusionModel
from .result import History
from .run_config import FILE, RunConfig, is_stored
from .training import FitState


@final
class Checkpoints(eqx.Module):
    """Folder and frequency of checkpoints, for `fit(..., checkpoints=Checkpoints(folder))`.

    If a run is killed, repeating the call continues from its last checkpoint and yields the same
    numbers as an uninterrupted run, bit for bit on the same kind of CPU. (On a GPU this also
    requires XLA_FLAGS=--xla_gpu_deterministic_ops=true.) Once the run is finished, the same call
    returns its result without training. A folder holds one run: the key, model, data, loss, batch
    size, averaging and trainable parameters must be those it was started with, and the optimiser
    of the same kind. The number of iterations can be increased if the optimiser is passed and its
    schedule has that length, as for `default_optimizer(num_iterations)`. `resume` sets the start
    of a run; a later checkpoint in the folder takes precedence. A checkpoint is also written when
    a fit ends, including by an interrupt (Ctrl-C) or an error.

    Requires orbax-checkpoint (`pip install diffppl[checkpoints]`).

    Args:
        folder: folder of one run, created if missing. It holds up to `keep` + 1 checkpoints, each
            four times the size of the weights with Adam and a moving average.
        every: minimum number of iterations between checkpoints. They are written at the end of the
            next chunk of `fit`, by other threads. Measured for a million weights (19 MB): 10 ms in
            the training thread and 0.2 s in the others.
        keep: number of checkpoints to keep, the most recent ones.

    Raises:
        ImportError: orbax-checkpoint is not installed.
        ValueError: `every` or `keep` is not a positive whole number.

    Example:
        >>> checkpoints = dp.Checkpoints("runs/roll", every=1_000)
        >>> result = dp.fit(key, model, data, num_iterations=50_000, checkpoints=checkpoints)
        >>> model = dp.Checkpoints("runs/roll").latest()  # from any process, at any time
    """

    folder: Path = eqx.field(static=True)
    every: int = eqx.field(static=True)
    keep: int = eqx.field(static=True)

    def __init__(self, folder: str | os.PathLike, *, every: int = 1_000, keep: int = 2) -> None:
        _orbax()
        self.every = check_size("every", every)
        self.keep = check_size("keep", keep)
        self.folder = Path(check_path("folder", folder)).expanduser().absolute()

    def latest(self, *, like: PyTree = None) -> DiffusionModel:
        """Return the model of the last checkpoint, with the averaged weights if there are any.

        Args:
            like: a model of the same structure, required if it has classes from outside diffppl
                (as for `load`).

        Raises:
            FileNotFoundError: the folder has no checkpoint.
            LoadError: the model requires `like`.
        """
        if not (self.folder / FILE).exists():
            raise FileNotFoundError(f"{str(self.folder)!r} holds no run: it has no {FILE}.")
        config = RunConfig.load(self.folder, like)
        with contextlib.closing(_manager(self, writing=False)) as manager:
            _, parts = _newest(self, manager, writing=False)
        if parts is None:
            raise FileNotFoundError(f"{str(self.folder)!r} has no checkpoint yet.")
        params = parts.get("average", parts["params"])
        return config.trained_model(params, parts.get("variance", []))


@final
class Run:
    """The folder of a run, open for writing.

    The settings are written to an empty folder, and compared with those in another. `model` is the
    initial model of the run.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder holds another run or other files, or its settings are damaged.
    """

    def __init__(self, checkpoints: Checkpoints, config: RunConfig) -> None:
        remedy = ", made by Checkpoints(folder)"
        check_instance("checkpoints", checkpoints, Checkpoints, remedy=remedy)
        self.model = _open_folder(checkpoints.folder, config).model
        self._checkpoints = checkpoints
        self._manager: Any = None
        self._first = self._last = 0  # iteration at the start, and at the last checkpoint

    def restore(
        self, state: FitState, history: History, num_iterations: int
    ) -> tuple[FitState, History]:
        """Return the state and history of the last checkpoint, or those passed if there is none."""
        self._first = self._last = int(state.iteration)
        self._manager = _manager(self._checkpoints, writing=True)
        iteration, parts = _newest(self._checkpoints, self._manager, writing=True)
        if parts is None:
            return state, history
        if iteration > num_iterations:
            raise ValueError(
                f"num_iterations={num_iterations} counts those already done, and the run in "
                f"{str(self._checkpoints.folder)!r} has {iteration}: pass as many, or more."
            )
        self._first = self._last = iteration
        fresh = _trees(state)
        restored = {name: _fill(fresh[name], parts.get(name, [])) for name in fresh}
        history = History(history.label, **{name: parts.get(name, [()])[0] for name in _HISTORY})
        return FitState(**restored), history

    def save(self, iteration: int, state: FitState, history: History) -> None:
        """Start to write a checkpoint, if one is due and none is being written."""
        due = iteration - self._last >= self._checkpoints.every
        if due and not (self._manager and self._manager.is_saving_in_progress()):
            self._write(iteration, state, history)

    def close(self, iteration: int, state: FitState, history: History) -> None:
        """Write a last checkpoint, if there are new iterations, and wait for it."""
        if iteration > self._first:
            self._write(iteration, state, history)
        with self._failures_as_warnings():
            if self._manager is not None:
                self._manager.close()

    def _write(self, iteration: int, state: FitState, history: History) -> None:
        with self._failures_as_warnings():  # those of the previous write
            if self._manager is not None:
                self._manager.wait_until_finished()
        with self._failures_as_warnings():
            self._last = iteration
            if self._manager is None:
                self._manager = _manager(self._checkpoints, writing=True)
            if iteration not in self._manager.all_steps():
                arrays = _orbax().args.StandardSave(_parts(state, history))
                self._manager.save(iteration, args=arrays, force=True)

    @contextlib.contextmanager
    def _failures_as_warnings(self) -> Iterator[None]:
        """Warn if a write fails, so that training continues without the checkpoint."""
        try:
            yield
        except BaseException as error:  # interrupts as well: the clean-up is the same
            # This manager counts the failed checkpoint as written, whereas a new one lists the
            # folder. Incomplete files are deleted because the disk may be full.
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                manager.close()
            for path in self._checkpoints.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            warnings.warn(
                f"the checkpoint at iteration {self._last} could not be written to "
                f"{str(self._checkpoints.folder)!r} ({type(error).__name__}: {error}). The fit "
                "continues, and the next checkpoint will be attempted.",
                stacklevel=7,  # the caller of `fit`
            )


def _open_folder(folder: Path, config: RunConfig) -> RunConfig:
    """Return the settings of the run in a folder; in an empty folder, write `config`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # fails now, not after training
    except OSError as error:
        what = f"checkpoints.folder cannot be written: {error.strerror}"
        raise OSError(error.errno, what, str(folder)) from error
    where = f"checkpoints.folder={str(folder)!r}"
    for path in folder.glob(".*.tmp"):  # left by killed processes
        path.unlink(missing_ok=True)
    if not (folder / FILE).exists():
        if any(not name.startswith(".") for name in os.listdir(folder)):
            raise ValueError(f"{where} holds other files: give the run a folder of its own.")
        config.save(folder)
        return config
    try:
        earlier = RunConfig.load(folder, config.model)
        changes = config.differences(earlier)
    except MismatchError as error:
        changes = [f"model differs ({error})"]
    except LoadError as error:
        raise LoadError(f"{where} holds a run that cannot be continued: {error}") from error
    if changes:
        raise ValueError(
            f"{where} holds another run: {'; '.join(changes)}. Pass what that run was started "
            "with, or another folder."
        )
    return earlier


# Contents of a checkpoint -----------------------------------------------------------------------

_HISTORY = ("loss", "validation_iterations", "validation_elbo")


def _trees(state: FitState) -> dict[str, PyTree]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _parts(state: FitState, history: History) -> dict[str, list[PyTree]]:
    """Return the arrays that change during a run, as one list for each name."""
    trees = _trees(state) | {name: getattr(history, name) for name in _HISTORY}
    kept = {name: list(filter(is_stored, jax.tree.leaves(tree))) for name, tree in trees.items()}
    return {name: arrays for name, arrays in kept.items() if arrays}


def _fill(tree: PyTree, arrays: list[PyTree]) -> PyTree:
    """Replace the arrays of a tree by those of a checkpoint, on the same devices."""
    remaining = iter(arrays)

    def filled(leaf: object) -> object:
        if not is_stored(leaf):
            return leaf
        saved = next(remaining)
        return jax.device_put(saved, leaf.sharding) if isinstance(leaf, jax.Array) else saved

    return jax.tree.map(filled, tree)


# Orbax ------------------------------------------------------------------------------------------


def _orbax() -> ModuleType:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Checkpoints needs orbax-checkpoint: pip install diffppl[checkpoints], or pip install "
            "orbax-checkpoint."
        ) from error
    return orbax.checkpoint


def _manager(checkpoints: Checkpoints, *, writing: bool) -> Any:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(checkpoints.keep),
        create=writing,
        cleanup_tmp_directories=writing,  # left by killed processes
    )
    return ocp.CheckpointManager(checkpoints.folder, options=options)


def _newest(
    checkpoints: Checkpoints, manager: Any, *, writing: bool
) -> tuple[int, dict[str, list[PyTree]] | None]:
    """Return iteration and contents of the last readable checkpoint, or (0, None) without any."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # the original may not exist
    arguments = _orbax().args.StandardRestore(fallback_sharding=sharding)
    where = repr(str(checkpoints.folder))
    damaged: dict[int, Exception] = {}
    for iteration in sorted(manager.all_steps(), reverse=True):
        try:
            parts = manager.restore(iteration, args=arguments)
        except Exception as error:  # any failure counts as damage
            damaged[iteration] = error
            continue
        if damaged:
            warnings.warn(
                f"the checkpoints at iterations {list(damaged)} in {where} cannot be read "
                f"({list(damaged.values())[0]}): going on from iteration {iteration}.",
                stacklevel=5 if writing else 4,  # the caller of `fit`, or of `latest`
            )
        # Readers leave the folder alone; a writer will save these iterations again.
        for broken in damaged if writing else ():
            manager.delete(broken)
        return iteration, parts
    for iteration, error in damaged.items():
        raise ValueError(
            f"none of the checkpoints in {where} can be read; the error of the one at "
            f"iteration {iteration} is: {error}"
        ) from error
    return 0, None
