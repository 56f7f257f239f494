"""Checkpoints: a fit that outlives the process it runs in.

The folder of a run holds `run.dppl`, which says what the run is (see `record`), and a folder for
each of its last checkpoints, named by its iteration: the weights, their average, the optimiser's
state, the reverse variance and the history. Those are written by Orbax, behind the training and
atomically: a process that is killed in the middle of one leaves the one before.
"""

import contextlib
import dataclasses
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp

from ..checks.arguments import check_instance, check_path, check_size
from ..io.serialisation import load
from ..model import DiffusionModel
from .result import History
from .run_config import FILE, Record, begun, is_kept, name_of
from .training import FitState


@final
class Checkpoints(eqx.Module):
    """Where `fit` keeps checkpoints, and how often: `fit(..., checkpoints=Checkpoints(folder))`.

    A run that is killed goes on from its last checkpoint when the same call is made again, and
    ends with the same numbers, bit for bit on the same kind of CPU, as one that never was. (On a
    GPU that needs XLA_FLAGS=--xla_gpu_deterministic_ops=true as well.) Once finished, the same call
    returns its result at once. A folder holds one run: the key, model, data, loss, batch size,
    averaging and what is trained must be those it was started with, and the optimiser of the same
    kind. More iterations may be asked for, if the optimiser is given and its schedule is as long,
    as that of `default_optimizer(num_iterations)` is; `resume` is where a run starts, and what the
    folder holds of it is further on. A checkpoint is also written when a fit
    ends, by an interrupt (Ctrl-C) or by an error too.

    Needs orbax-checkpoint (`pip install diffppl[checkpoints]`).

    Args:
        folder: of one run, made if there is none. It takes up to `keep` + 1 checkpoints, each
            four times the size of the weights with Adam and a moving average.
        every: iterations between two checkpoints, at least. They are written at the end of the
            next chunk of `fit`, by other threads. Measured for a million weights (19 MB): 10 ms of
            the training's own thread and 0.2 s of theirs.
        keep: how many to keep, the last ones.

    Raises:
        ImportError: there is no orbax-checkpoint.
        ValueError: `every` or `keep` is not a positive whole number.

    Example:
        >>> checkpoints = dp.Checkpoints("runs/roll", every=1_000)
        >>> result = dp.fit(key, model, data, num_iterations=50_000, checkpoints=checkpoints)
        >>> model = dp.Checkpoints("runs/roll").latest()    # from anywhere, while it runs or after
    """

    folder: Path = eqx.field(static=True)
    every: int = eqx.field(static=True)
    keep: int = eqx.field(static=True)

    def __init__(self, folder: str | os.PathLike, *, every: int = 1_000, keep: int = 2) -> None:
        _orbax()
        self.every = check_size("every", every)
        self.keep = check_size("keep", keep)
        self.folder = Path(check_path("folder", folder)).expanduser().absolute()

    def latest(self, *, like: Any = None) -> DiffusionModel:
        """The model as of the last checkpoint, with the averaged weights if they were averaged.

        Args:
            like: a model of the same shape, if it has classes that diffppl does not know (as for
                `load`).

        Raises:
            FileNotFoundError: the folder has no checkpoint.
            LoadError: the model needs `like`.
        """
        path = self.folder / FILE
        if not path.exists():
            raise FileNotFoundError(f"{str(self.folder)!r} holds no run: it has no {FILE}.")
        record = load(path, like={"model": like})
        with contextlib.closing(_manager(self, writing=False)) as manager:
            _, parts = _newest(self, manager, writing=False)
        if parts is None:
            raise FileNotFoundError(f"{str(self.folder)!r} has no checkpoint yet.")
        weights = [*parts.get("average", parts["params"]), *parts.get("variance", [])]
        names = [*record["trainable"], *record["variance"]]
        changed = dict(zip(names, map(jnp.asarray, weights), strict=True))
        leaves, structure = jax.tree_util.tree_flatten_with_path(record["model"])
        return jax.tree.unflatten(
            structure,
            [
                changed.get(name_of(*leaf), leaf[1]) if is_kept(leaf[1]) else leaf[1]
                for leaf in leaves
            ],
        )


@final
class Run:
    """A run's folder, open for writing.

    Args:
        checkpoints: where.
        record: what the run is.

    Attributes:
        model: the one that the run started from.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it holds another run.
    """

    def __init__(self, checkpoints: Checkpoints, record: Record) -> None:
        self.model = begun(checkpoints.folder, record)
        self._checkpoints = checkpoints
        self._manager: Any = None
        self._first = self._last = 0  # iterations: where it began, and the last checkpoint's

    def restore(
        self, state: FitState, history: History, num_iterations: int
    ) -> tuple[FitState, History]:
        """The run's last state, or if it has none the one given, which is a fresh one.

        Raises:
            ValueError: it has more than `num_iterations` already, or cannot be read.

        Warns:
            UserWarning: the last checkpoint cannot be read, and one before it could.
        """
        self._first = self._last = int(state.iteration)
        self._manager = _manager(self._checkpoints, writing=True)
        iteration, parts = _newest(self._checkpoints, self._manager, writing=True)
        if parts is None:
            return state, history
        if iteration > num_iterations:
            raise ValueError(
                f"num_iterations={num_iterations} counts those already done, and the run in "
                f"{str(self._checkpoints.folder)!r} has {iteration}: ask for as many, or more."
            )
        self._first = self._last = iteration
        fresh = _trees(state)
        restored = {name: _fill(fresh[name], parts.get(name, [])) for name in fresh}
        history = History(history.label, **{name: parts.get(name, [()])[0] for name in _HISTORY})
        return FitState(**restored), history

    def save(self, iteration: int, state: FitState, history: History) -> None:
        """Begin to write a checkpoint, if one is due and none is being written."""
        due = iteration - self._last >= self._checkpoints.every
        if due and not (self._manager and self._manager.is_saving_in_progress()):
            self._write(iteration, state, history)

    def close(self, iteration: int, state: FitState, history: History) -> None:
        """Write a last checkpoint, if there is anything new, and wait for it."""
        if iteration > self._first:
            self._write(iteration, state, history)
        with self._forgiven():
            if self._manager is not None:
                self._manager.close()

    def _write(self, iteration: int, state: FitState, history: History) -> None:
        with self._forgiven():  # the one before
            if self._manager is not None:
                self._manager.wait_until_finished()
        with self._forgiven():
            self._last = iteration
            if self._manager is None:
                self._manager = _manager(self._checkpoints, writing=True)
            if iteration not in self._manager.all_steps():
                arrays = _orbax().args.StandardSave(_parts(state, history))
                self._manager.save(iteration, args=arrays, force=True)

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Warn of what fails: a run is worth more than its checkpoint."""
        try:
            yield
        except BaseException as error:
            # The manager counts what it began to write, where another one will look at what there
            # is. What is not whole must not take up a disk that may be full.
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
                "goes on, and the next one will be tried.",
                stacklevel=6,
            )


def open_run(checkpoints: Any, record: Record) -> Run:
    """The run in a folder, new or begun before."""
    check_instance("checkpoints", checkpoints, Checkpoints, remedy=", made by Checkpoints(folder)")
    return Run(checkpoints, record)


# What is in a checkpoint ------------------------------------------------------------------------

_HISTORY = ("loss", "validation_iterations", "validation_elbo")


def _trees(state: FitState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _parts(state: FitState, history: History) -> dict[str, list[Any]]:
    """All that changes, by name, as lists of arrays."""
    trees = _trees(state) | {name: getattr(history, name) for name in _HISTORY}
    kept = {name: list(filter(is_kept, jax.tree.leaves(tree))) for name, tree in trees.items()}
    return {name: arrays for name, arrays in kept.items() if arrays}


def _fill(tree: Any, arrays: list[Any]) -> Any:
    """The tree, with the arrays of a checkpoint on the devices where its own are."""
    leaves, structure = jax.tree.flatten(tree)
    left = iter(arrays)
    return jax.tree.unflatten(
        structure,
        [_like(leaf, next(left)) if is_kept(leaf) else leaf for leaf in leaves],
    )


def _like(leaf: Any, saved: Any) -> Any:
    return jax.device_put(saved, leaf.sharding) if isinstance(leaf, jax.Array) else saved


# Orbax ------------------------------------------------------------------------------------------


def _orbax() -> Any:
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
        cleanup_tmp_directories=writing,  # what a killed process left
    )
    return ocp.CheckpointManager(checkpoints.folder, options=options)


def _newest(
    checkpoints: Checkpoints, manager: Any, *, writing: bool
) -> tuple[int, dict[str, list[Any]] | None]:
    """The iteration of the last checkpoint that can be read, and what is in it; None if none."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # its own device may be gone
    arguments = _orbax().args.StandardRestore(fallback_sharding=sharding)
    where = repr(str(checkpoints.folder))
    damaged: dict[int, Exception] = {}
    for iteration in sorted(manager.all_steps(), reverse=True):
        try:
            parts = manager.restore(iteration, args=arguments)
        except Exception as error:
            damaged[iteration] = error
            continue
        if damaged:
            warnings.warn(
                f"the checkpoints at iterations {list(damaged)} in {where} cannot be read "
                f"({list(damaged.values())[0]}): going on from iteration {iteration}.",
                stacklevel=4,
            )
        for broken in damaged if writing else ():
            manager.delete(broken)
        return iteration, parts
    for iteration, error in damaged.items():
        raise ValueError(
            f"none of the checkpoints in {where} can be read, not even the one at iteration "
            f"{iteration}: {error}"
        ) from error
    return 0, None
