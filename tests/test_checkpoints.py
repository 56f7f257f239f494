import errno
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import diffppl as dp
from diffppl.fitting import loop
from diffppl.fitting.losses import AbstractLoss
from diffppl.fitting.result import FitResult, NonFiniteLossError

NUM_STEPS = 6
SCHEDULE = dp.schedules.log_snr_linear(NUM_STEPS, noise_to_signal=(0.1, 20.0))
DATA = np.random.default_rng(0).normal(size=(500, 2)) * [3.0, 1.0] + [10.0, -4.0]
KEY = jax.random.key(1)


def make_model(seed: int = 0, width: int = 8, **kwargs: Any) -> dp.DiffusionModel:
    network = dp.networks.MLP((2,), width=width, depth=1, key=jax.random.key(seed))
    return dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,), **kwargs)


MODEL = make_model()
OPTIMIZER = optax.adam(3e-3)


class QuickLoss(AbstractLoss):
    """Compiles in no time; depends on the key, the data and all of the network."""

    scale: jax.Array = eqx.field(default_factory=lambda: jnp.ones(()))

    @property
    def label(self) -> str:
        return "quick loss"

    def check(self, model: Any) -> None:
        pass

    def __call__(self, key: Any, model: Any, x_0: Any, context: Any) -> Any:
        weights = [leaf.ravel() for leaf in jax.tree.leaves(model.network) if eqx.is_array(leaf)]
        weights = jnp.concatenate(weights)
        noise = jax.random.normal(key, weights.shape)
        return self.scale * jnp.mean((weights - 0.1 * noise - jnp.mean(x_0)) ** 2)


def fit(folder: Any = None, num_iterations: int = 40, **kwargs: Any) -> FitResult:
    options = {
        "key": KEY,
        "model": MODEL,
        "data": DATA,
        "batch_size": 32,
        "chunk": 10,
        "loss": QuickLoss(),
        "optimizer": OPTIMIZER,
        "progress_bar": False,
    }
    options |= kwargs
    every = options.pop("every", 10)
    checkpoints = None if folder is None else dp.Checkpoints(folder, every=every)
    return dp.fit(
        options.pop("key"),
        options.pop("model"),
        options.pop("data"),
        num_iterations=num_iterations,
        checkpoints=checkpoints,
        **options,
    )


def long_fit(folder: Any) -> FitResult:
    """Checkpoints all the time."""
    return fit(folder, 6_000, every=20)


def real_fit(folder: Any) -> FitResult:
    """The same with the real loss, and validations."""
    options = {"loss": dp.losses.ELBOLoss(), "optimizer": None, "validation_data": DATA[:20]}
    return fit(folder, 3_000, every=20, validation_every=70, **options)


def assert_identical(a: Any, b: Any) -> None:
    """The same trees, bit by bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if eqx.is_array(x):
            x, y = (
                jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z
                for z in (x, y)
            )
            assert x.dtype == y.dtype
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_same_result(a: FitResult, b: FitResult) -> None:
    assert_identical(a, b)
    np.testing.assert_array_equal(a.history.loss, b.history.loss)
    np.testing.assert_array_equal(a.history.validation_elbo, b.history.validation_elbo)


def stop_after(monkeypatch: pytest.MonkeyPatch, chunks: int, error: type) -> None:
    """Raise an error in place of the next chunk but `chunks`."""
    run_chunk, calls = loop.run_chunk, []

    def stopped(*args: Any) -> Any:
        calls.append(None)
        if len(calls) > chunks:
            raise error
        return run_chunk(*args)

    monkeypatch.setattr(loop, "run_chunk", stopped)


def fit_interrupted(
    monkeypatch: pytest.MonkeyPatch, chunks: int, folder: Path, **options: Any
) -> FitResult:
    """A fit that Ctrl-C ends after so many chunks."""
    with monkeypatch.context() as patched:
        stop_after(patched, chunks, KeyboardInterrupt)
        with pytest.warns(UserWarning, match="fit was interrupted after"):
            return fit(folder, **options)


def begin(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A fit that ends before its first iteration."""
    with monkeypatch.context() as patched:
        stop_after(patched, 0, RuntimeError)
        with pytest.raises(RuntimeError):
            fit(folder)


def wait_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a checkpoint wait for the one before it, where training would pass it over."""
    manager = orbax.checkpoint.CheckpointManager
    monkeypatch.setattr(manager, "is_saving_in_progress", lambda self: False)


def steps(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


# Killed ------------------------------------------------------------------------------------------


def start(function: str, folder: Path) -> subprocess.Popen:
    code = f"import sys, tests.test_checkpoints as test; test.{function}(sys.argv[1])"
    own = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder.with_name("compiled"))}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=own)


def kill(process: subprocess.Popen, folder: Path, *, saving: bool, least: int = 0) -> bool:
    """Kill once there is a checkpoint of more than `least` iterations; False if it ended first."""
    while process.poll() is None:
        names = os.listdir(folder) if folder.exists() else []
        done = max([int(name) for name in names if name.isdigit()], default=-1)
        if done > least and (not saving or any("tmp" in name for name in names)):
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.001)
    return False


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_saves_ends_as_one_that_never_was(folder: Path):
    assert kill(start("long_fit", folder), folder, saving=True)
    assert any("tmp" in name for name in os.listdir(folder))  # it was in the middle of a save
    assert max(steps(folder)) < 6_000
    assert_same_result(long_fit(folder), long_fit(None))
    assert not any("tmp" in name for name in os.listdir(folder))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(folder: Path):
    rng, kills = np.random.default_rng(0), 0
    for i in range(8):
        process = start("real_fit", folder)
        least = max(steps(folder), default=0) if folder.exists() else 0
        killed = kill(process, folder, saving=i % 2 == 0, least=least + int(rng.integers(250)))
        kills += killed
    assert kills >= 4
    assert_same_result(real_fit(folder), real_fit(None))


def test_a_run_that_is_killed_before_its_first_checkpoint_starts_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    begin(monkeypatch, folder)
    assert steps(folder) == []
    assert_same_result(fit(folder), fit())


# Stopped in other ways ---------------------------------------------------------------------------


def test_an_interrupt_is_gone_on_from(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = fit_interrupted(monkeypatch, 2, folder, every=1_000)
    assert steps(folder) == [20]
    assert first.history.loss.size == 20
    assert_same_result(fit(folder), fit())


@pytest.mark.slow
def test_an_error_leaves_a_checkpoint_of_what_was_good(folder: Path):
    def rate(count: jax.Array) -> jax.Array:
        return jnp.where(count == 23, jnp.inf, 1e-3)

    options = {"optimizer": optax.sgd(rate), "every": 1_000}
    for _ in range(2):
        with pytest.raises(NonFiniteLossError) as caught:
            fit(folder, **options)
        assert steps(folder) == [20]
    assert_identical(dp.Checkpoints(folder).latest(), caught.value.result.model)


@pytest.mark.slow
def test_validations_and_the_default_optimiser_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"optimizer": None, "validation_data": DATA[:20], "validation_every": 15}
    first = fit_interrupted(monkeypatch, 3, folder, **options)
    assert list(first.history.validation_iterations) == [15]
    result = fit(folder, **options)
    assert list(result.history.validation_iterations) == [15, 30, 40]
    assert_same_result(result, fit(**options))


def test_a_finished_run_is_returned_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    result = fit(folder)
    stop_after(monkeypatch, 0, RuntimeError)
    assert_same_result(fit(folder), result)
    with pytest.raises(ValueError, match=r"num_iterations=39 counts.*has 40: pass as many"):
        fit(folder, 39)


def test_more_iterations_may_be_asked_for(folder: Path):
    fit(folder, 20)
    assert_same_result(fit(folder, 40), fit())


def test_a_resumed_fit_is_where_a_run_starts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = fit(None, 10)
    fit_interrupted(monkeypatch, 1, folder, resume=first)
    assert_same_result(fit(folder, resume=first), fit())
    with pytest.raises(ValueError, match="holds another run: model differs"):
        fit(folder, resume=fit(None, 20))


OPTIMIZERS = {
    "keys": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(1e-2)),
    "hyperparameters": optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1e-2, 0, 40)),
    "line search": optax.lbfgs(memory_size=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimiser_comes_back(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"optimizer": OPTIMIZERS[name], "ema_decay": None}
    assert 0 < fit_interrupted(monkeypatch, 2, folder, **options).history.loss.size < 40
    assert_same_result(fit(folder, **options), fit(**options))


# What is kept ------------------------------------------------------------------------------------


def test_the_last_ones_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    wait_for_each(monkeypatch)
    fit(folder, 70, every=20)
    assert steps(folder) == [60, 70]


def test_the_latest_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = dp.Checkpoints(folder)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        checkpoints.latest()
    begin(monkeypatch, folder)
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        checkpoints.latest()
    result = fit(folder)
    before = sorted(folder.rglob("*"))
    assert_identical(checkpoints.latest(), result.model)
    assert sorted(folder.rglob("*")) == before


class Own(eqx.Module):
    """A network that diffppl does not know, of which only a part is trained."""

    layer: eqx.nn.Linear
    frozen: jax.Array

    def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
        return self.layer(x_t) + self.frozen


def test_the_latest_model_of_a_class_of_ones_own(folder: Path):
    network = Own(eqx.nn.Linear(2, 2, key=KEY), jnp.ones(2))
    model = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,))
    spec = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(lambda model: model.network.layer, spec, replace=True)
    result = fit(folder, model=model, trainable=spec, ema_decay=None)
    assert_same_result(fit(folder, model=model, trainable=spec, ema_decay=None), result)
    assert not np.array_equal(result.model.network.layer.weight, network.layer.weight)
    with pytest.raises(dp.LoadError, match="Pass like=model"):
        dp.Checkpoints(folder).latest()
    assert_identical(dp.Checkpoints(folder).latest(like=model), result.model)


# When the disk fails -----------------------------------------------------------------------------


def spoil(step: Path) -> None:
    """Cut off what a power failure would: the second half of every file."""
    for path in step.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_checkpoint_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch):
    wait_for_each(monkeypatch)
    fit_interrupted(monkeypatch, 2, folder)
    assert steps(folder) == [10, 20]
    spoil(folder / "20")
    with pytest.warns(UserWarning, match=r"iterations \[20\].*going on from iteration 10"):
        result = fit(folder)
    assert_same_result(result, fit())
    for step in steps(folder):
        spoil(folder / str(step))
    with pytest.raises(ValueError, match="none of the checkpoints .* can be read"):
        fit(folder)
    with pytest.raises(ValueError, match="none of the checkpoints .* can be read"):
        dp.Checkpoints(folder).latest()


def test_damaged_settings_of_a_run_are_reported_as_such(folder: Path):
    fit(folder)
    path = folder / "run.dppl"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(dp.LoadError, match="holds a run that cannot be continued: .* damaged or"):
        fit(folder)
    with pytest.raises(dp.LoadError, match="damaged or cut short"):
        dp.Checkpoints(folder).latest()


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    manager = orbax.checkpoint.CheckpointManager
    save, calls = manager.save, []

    def full(self: Any, step: int, **kwargs: Any) -> Any:
        calls.append(step)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, **kwargs)

    monkeypatch.setattr(manager, "save", full)
    wait_for_each(monkeypatch)
    with pytest.warns(UserWarning, match="iteration 10 could not.*No space left on dev") as caught:
        result = fit(folder)
    assert len(caught) == 1
    assert calls == [10, 20, 30, 40]
    assert steps(folder) == [30, 40]
    assert_same_result(result, fit())


def fit_on_a_small_disk(folder: str) -> None:
    """Train while no file may grow beyond 20 kB, where a checkpoint needs more."""
    run_chunk = loop.run_chunk

    def limited(*args: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return run_chunk(*args)

    loop.run_chunk = limited
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(folder, 300, every=100, model=make_model(width=64))
    assert all("could not be written" in str(warning.message) for warning in caught)
    assert len(caught) >= 2  # during the fit, and at its end
    losses = fit(None, 300, model=make_model(width=64)).history.loss
    np.testing.assert_array_equal(result.history.loss, losses)
    print("returned")


@pytest.mark.slow
def test_files_that_cannot_be_written_by_the_threads_that_write_them(folder: Path):
    code = "import sys, tests.test_checkpoints as test; test.fit_on_a_small_disk(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    # JAX's own cache would be too large for the disk as well, and warn.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout == "returned\n", done.stderr
    assert os.listdir(folder) == ["run.dppl"]  # nothing half-written takes up the disk


@pytest.mark.parametrize("where", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_refused_before_long_work(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    stop_after(monkeypatch, 0, RuntimeError)
    with pytest.raises(OSError, match="checkpoints.folder cannot be written: (Not a|File ex)"):
        fit(tmp_path / where)


# Another run -------------------------------------------------------------------------------------


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"key": jax.random.key(2)}, r"key was key<fry> \[0, 1\] and is key<fry> \[0, 2\]"),
    "data": ({"data": DATA + 1e-3}, "(data|model) (was|differs)"),
    "other rows": ({"data": DATA[::-1]}, "data was Rows"),
    "seed": ({"model": make_model(seed=5)}, "model differs"),
    "width": ({"model": make_model(width=9)}, "model differs"),
    "scaling": ({"scaling": dp.Scaling(0.0, 5.0)}, "model differs"),
    "loss": ({"loss": QuickLoss(jnp.array(2.0))}, "loss was QuickLoss"),
    "another loss": ({"loss": dp.losses.ELBOLoss()}, "loss was QuickLoss .* and is ELBOLoss"),
    "optimizer": ({"optimizer": optax.sgd(0.1, momentum=0.9)}, "optimizer differs"),
    "default optimizer": ({"optimizer": None}, "optimizer differs|num_iterations was None"),
    "ema_decay": ({"ema_decay": 0.9}, "ema_decay was 0.999 and is 0.9"),
    "batch_size": ({"batch_size": 16}, "batch_size was 32 and is 16"),
    "trainable": (
        {
            "trainable": eqx.tree_at(
                lambda m: m.network.last, jax.tree.map(lambda _: False, MODEL), replace=True
            )
        },
        "trainable differs",
    ),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "run"
    fit(folder)
    return folder


@pytest.mark.filterwarnings("ignore:data have a mean square")
@pytest.mark.parametrize("case", OTHERS)
def test_the_folder_of_another_run_is_refused(case: str, other: Path):
    options, message = OTHERS[case]
    with pytest.raises(ValueError, match=f"holds another run: {message}"):
        fit(other, **options)


def test_the_default_optimiser_depends_on_the_number_of_iterations(folder: Path):
    first = fit(folder, 20, optimizer=None)
    with pytest.raises(ValueError, match=r"num_iterations was 20.*=default_optimizer\(40\)"):
        fit(folder, 40, optimizer=None)
    with pytest.raises(ValueError, match="learning rate has decayed to zero.*default_optimizer.40"):
        fit(folder, 40, optimizer=dp.default_optimizer(20))
    longer = fit(folder, 40, optimizer=dp.default_optimizer(40))
    np.testing.assert_array_equal(longer.history.loss[:20], first.history.loss)
    assert_same_result(longer, fit(None, 40, optimizer=None, resume=first))
    moved = longer.last_model.network.last.weight - first.last_model.network.last.weight
    assert np.abs(moved).max() > 1e-4


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "2024").mkdir()
    with pytest.raises(ValueError, match="holds other files: give the run a folder of its own"):
        fit(tmp_path)
    assert os.listdir(tmp_path) == ["2024"]


# Bad input ---------------------------------------------------------------------------------------


def test_bad_options_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="every=0 must be a whole number"):
        dp.Checkpoints(folder, every=0)
    with pytest.raises(ValueError, match="keep=True must be a whole number"):
        dp.Checkpoints(folder, keep=True)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install diffppl\[checkpoints\]"):
        dp.Checkpoints(folder)
