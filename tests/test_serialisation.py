import functools
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffppl as dp
from diffppl.fitting.result import FitResult, History
from diffppl.fitting.training import FitState, default_trainable, trained_leaves
from diffppl.io.codec import Describer, Rebuilder, known_classes

from . import registry

KEY = jax.random.key(0)
COSINE = dp.schedules.cosine(5)


def mlp_model(**kwargs: Any) -> dp.DiffusionModel:
    network = dp.networks.MLP((3,), width=8, depth=2, key=KEY)
    return dp.DiffusionModel(dp.GaussianDiffusion(COSINE), network, (3,), **kwargs)


def context_model() -> dp.DiffusionModel:
    network = dp.networks.MLP((3,), width=8, depth=2, key=KEY, context_shape=(2,))
    return dp.DiffusionModel(dp.GaussianDiffusion(COSINE), network, (3,), context_shape=(2,))


def categorical_model() -> dp.DiffusionModel:
    process = registry.PROCESSES["categorical-absorbing"](dp.schedules.reciprocal(5))
    network = dp.networks.MLP(
        (3,), width=8, depth=1, key=KEY, output_shape=(3, 3), num_categories=process.num_states
    )
    return dp.DiffusionModel(process, network, (3,))


# Everything of the registry, and what models are made of besides.
OBJECTS: dict[str, Any] = {
    **{f"schedule {name}": make(5) for name, make in registry.SCHEDULES.items()},
    **{
        f"process {process} {schedule}": registry.PROCESSES[process](
            registry.SCHEDULES[schedule](5)
        )
        for process, schedule in registry.chains()
    },
    **{f"prediction {name}": make() for name, make in registry.PREDICTIONS.items()},
    **{f"network {name}": make(KEY, (3,), (3,), 5) for name, make in registry.NETWORKS.items()},
    **{
        f"known {name}": known.model(dp.schedules.reciprocal(5))
        for name, known in registry.KNOWN.items()
    },
    "model scaled": mlp_model(scaling=dp.Scaling(np.arange(3.0), 2.5)),
    "model respaced": dp.respaced(mlp_model(), 3),
    "model respaced twice": dp.respaced(dp.respaced(mlp_model(), 4), 2),
    "model context": context_model(),
    "model categorical": categorical_model(),
    "model known": registry.KNOWN["mixture"].model(COSINE),
}


def assert_same(a: Any, b: Any) -> None:
    """The same tree, with the same types and bits at its leaves."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if eqx.is_array(x) or isinstance(x, np.generic):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x is y or x == y


def roundtrip(value: Any, path: Path) -> Any:
    dp.save(path, value)
    return dp.load(path)


# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_saved_comes_back(name: str, tmp_path: Path):
    assert_same(roundtrip(OBJECTS[name], tmp_path / "object.dppl"), OBJECTS[name])


@pytest.mark.parametrize("name", ["model respaced", "model categorical"])
def test_a_loaded_model_draws_the_same_samples_and_has_the_same_bound(name: str, tmp_path: Path):
    model = OBJECTS[name]
    loaded = roundtrip(model, tmp_path / "model.dppl")
    x = dp.sample(KEY, model, (20,))
    np.testing.assert_array_equal(dp.sample(KEY, loaded, (20,)), x)
    before, after = (dp.elbo(KEY, m, x) for m in (model, loaded))
    np.testing.assert_array_equal(after.per_example, before.per_example)
    np.testing.assert_array_equal(after.terms, before.terms)


def test_a_new_process_loads_the_same_model(tmp_path: Path):
    model, path = OBJECTS["model scaled"], tmp_path / "model.dppl"
    dp.save(str(path), model)
    code = (
        "import sys, jax, numpy, diffppl as dp\n"
        "model = dp.load(sys.argv[1])\n"
        "estimate = model.denoise(jax.numpy.ones(3), 2)\n"
        "print(type(model).__name__, numpy.asarray(model.to_user(estimate)).tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    expected = np.asarray(model.to_user(model.denoise(jnp.ones(3), 2))).tobytes().hex()
    assert done.stdout.split() == ["DiffusionModel", expected]


def test_values_of_every_kind(tmp_path: Path):
    arrays = [
        jnp.asarray([1.5, -0.0, jnp.inf, jnp.nan], dtype)
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16, jnp.complex64)
    ]
    value = {
        "arrays": (*arrays, jnp.arange(3, dtype=jnp.uint8), jnp.array(True), jnp.zeros((0, 2))),
        "numpy": [np.arange(3.0), np.array(7, ">i4"), np.float64(0.1), np.int8(-3)],
        "plain": (None, True, 2, -0.0, float("-inf"), 1e-300, "x_0 \N{GREEK SMALL LETTER BETA}"),
        "functions": [jax.nn.silu, jnp.tanh, jax.nn.gelu],
        "is": {"is": "array", "index": 0},
    }
    loaded = roundtrip(value, tmp_path / "values.dppl")
    value["numpy"][1] = np.array(7, "i4")  # byte order is not kept
    assert_same(loaded, value)
    assert str(loaded["plain"]) == str(value["plain"])


def test_activations_of_equinox_networks(tmp_path: Path):
    leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.05)
    layers = [eqx.nn.Lambda(leaky), eqx.nn.MLP(2, 2, 4, 1, key=KEY), eqx.nn.LayerNorm(2)]
    network = eqx.nn.Sequential(layers)
    loaded = roundtrip(network, tmp_path / "network.dppl")
    x = jnp.array([-1.0, 0.3])
    np.testing.assert_array_equal(loaded(x), network(x))
    assert loaded[0].fn.func is jax.nn.leaky_relu
    assert loaded[0].fn.keywords == {"negative_slope": 0.05}
    assert_same(loaded[1], network[1])


def test_double_precision_is_kept_or_asked_for(tmp_path: Path):
    path = tmp_path / "double.dppl"
    with jax.enable_x64(True):
        schedule = dp.schedules.cosine(4)
        assert schedule.log_snr().dtype == jnp.float64
        assert_same(roundtrip(schedule, path), schedule)
    with pytest.raises(dp.LoadError, match="_log_snr has dtype float64.*jax_enable_x64"):
        dp.load(path)


@pytest.mark.parametrize("old", dp.schedules.RENAMED)
def test_a_schedule_of_an_old_class_is_loaded(old: str):
    describer = Describer(foreign=False)
    described = describer.describe(COSINE, "schedule")
    described["class"] = f"diffppl.schedules.{old}"
    assert_same(Rebuilder(describer.arrays).rebuild(described, None, "schedule"), COSINE)


def test_every_public_module_is_known():
    names = known_classes()
    for cls in (
        dp.DiffusionModel,
        dp.Scaling,
        dp.networks.MLP,
        dp.schedules.Schedule,
        eqx.nn.Linear,
    ):
        assert cls in names.values()
    assert all(name.startswith(("diffppl.", "equinox.nn.")) for name in names)


# Classes of one's own -----------------------------------------------------------------------------


class Mine(eqx.Module):
    layer: eqx.nn.Linear
    activation: Any
    note: object = eqx.field(static=True)

    def __init__(self, size: int = 3, *, key: Any) -> None:
        self.layer = eqx.nn.Linear(size, size, key=key)
        self.activation = lambda x: x**3
        self.note = object()

    def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
        return self.activation(self.layer(x_t))


def my_model(key: Any = KEY, **kwargs: Any) -> dp.DiffusionModel:
    return dp.DiffusionModel(dp.GaussianDiffusion(COSINE), Mine(key=key), (3,), **kwargs)


def test_a_class_of_ones_own_is_refused_before_anything_is_written(tmp_path: Path):
    path = tmp_path / "mine.dppl"
    message = r"model\.network is a tests\.test_serialisation\.Mine.*needs_like=True.*like=model"
    with pytest.raises(TypeError, match=message):
        dp.save(path, my_model())
    assert list(tmp_path.iterdir()) == []
    dp.save(path, COSINE)
    with pytest.raises(TypeError, match=message):
        dp.save(path, my_model())
    assert_same(dp.load(path), COSINE)


def test_like_supplies_what_a_file_cannot_hold(tmp_path: Path):
    """The model was fit, so it has a scaling that a new one of the same code has not."""
    path = tmp_path / "mine.dppl"
    model = my_model(scaling=dp.Scaling(1.0, 2.0))
    dp.save(path, model, needs_like=True)
    skeleton = my_model(jax.random.key(5))
    loaded = dp.load(path, like=skeleton)
    x_t = jnp.array([0.1, -0.2, 0.3])
    np.testing.assert_array_equal(loaded.denoise(x_t, 2), model.denoise(x_t, 2))
    assert float(loaded.scaling.scale) == 2.0
    assert loaded.network.note is skeleton.network.note
    assert not np.array_equal(skeleton.network.layer.weight, model.network.layer.weight)


def test_like_must_be_given_and_must_fit(tmp_path: Path):
    path = tmp_path / "mine.dppl"
    dp.save(path, my_model(), needs_like=True)
    with pytest.raises(dp.LoadError, match=r"model\.network is a .*Mine, of which .* Pass like="):
        dp.load(path)
    other = dp.DiffusionModel(dp.GaussianDiffusion(COSINE), Mine(4, key=KEY), (4,))
    with pytest.raises(
        dp.LoadError, match=r"like does not fit at model\.network.*\(3, 3\).*\(4, 4\)"
    ):
        dp.load(path, like=other)
    with pytest.raises(
        dp.LoadError, match="like does not fit at model.network: the file has the 2"
    ):
        dp.load(path, like=mlp_model())


def test_a_fit_can_be_kept_in_a_file_with_its_optimiser(tmp_path: Path):
    model, optimizer = mlp_model(scaling=dp.Scaling(1.0, 2.0)), optax.adam(1e-3)
    params, _ = eqx.partition(model, trained_leaves(model, default_trainable(model)))
    variance = dp.predictions.FittedVariance.start((3,))
    state = FitState(params, None, optimizer.init(params), variance, jnp.array(7, jnp.int32))
    result = FitResult(model, model, History("loss", [3.0, 2.0], [2], [-1.5]), state)
    path = tmp_path / "run.dppl"
    dp.save(path, result, needs_like=True)
    fresh = FitState(params, None, optimizer.init(params), variance, jnp.array(0, jnp.int32))
    like = FitResult(mlp_model(), mlp_model(), History("loss"), fresh)
    assert_same(dp.load(path, like=like), result)


def test_keys_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match=r"model\['key'\] holds a JAX key"):
        dp.save(tmp_path / "key.dppl", {"key": KEY}, needs_like=True)


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / "model.dppl"
    dp.save(path, OBJECTS["model scaled"])
    return path.read_bytes()


@pytest.mark.parametrize("flip", [0xFF, 0x01])
def test_a_changed_byte_is_noticed_wherever_it_is(content: bytes, flip: int, tmp_path: Path):
    path = tmp_path / "model.dppl"
    first = content.index(b"\n") + 1
    rng = np.random.default_rng(0)
    for place in [*range(first), *rng.choice(len(content), 200), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(dp.LoadError, match=r"model\.dppl' cannot be loaded: "):
            dp.load(path)


def test_a_file_cut_short_or_added_to_is_noticed(content: bytes, tmp_path: Path):
    path = tmp_path / "model.dppl"
    for length in [*range(0, len(content) - 1, 101), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(dp.LoadError):
            dp.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(dp.LoadError, match="damaged or cut short"):
        dp.load(path)


@pytest.mark.parametrize(
    "other", [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", pickle.dumps([1, 2]), b"diffppl"]
)
def test_other_files_are_refused(other: bytes, tmp_path: Path):
    path = tmp_path / "other"
    path.write_bytes(other)
    with pytest.raises(dp.LoadError, match="not a file that diffppl.save wrote"):
        dp.load(path)


def test_a_newer_format_says_so(content: bytes, tmp_path: Path):
    path = tmp_path / "model.dppl"
    path.write_bytes(content.replace(b"diffppl 1 ", b"diffppl 2 ", 1))
    with pytest.raises(dp.LoadError, match="format 2, and this version .* up to format 1: upgrade"):
        dp.load(path)


def test_a_missing_file_or_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        dp.load(tmp_path / "nothing.dppl")
    with pytest.raises(FileNotFoundError):
        dp.save(tmp_path / "nowhere" / "model.dppl", COSINE)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.dppl"
    dp.save(path, COSINE)

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        dp.save(path, dp.schedules.linear(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.dppl"]
    assert_same(dp.load(path), COSINE)


# Malice -------------------------------------------------------------------------------------------


def forge(path: Path, value: Any, arrays: Any = (), data: bytes = b"") -> None:
    """A file whose checksum is right, whatever it says."""
    text = json.dumps({"arrays": list(arrays), "value": value}).encode()
    checksum = zlib.crc32(text + data)
    path.write_bytes(f"diffppl 1 {checksum:08x} {len(text)}\n".encode() + text + data)


FLOAT = {"dtype": "float32", "shape": [1]}
FORGED: dict[str, Any] = {
    "a class from elsewhere": ({"is": "module", "class": "subprocess.Popen", "fields": {}},),
    "a class to import": ({"is": "module", "class": "antigravity.Module", "fields": {}},),
    "a function from elsewhere": ({"is": "function", "name": "os.system"},),
    "a partial of one": (
        {"is": "partial", "function": {"is": "function", "name": "os.system"}, "items": [[], {}]},
    ),
    "fields that a class has not": (
        {"is": "module", "class": "diffppl.model.scaling.Scaling", "fields": {"__class__": None}},
    ),
    "a class without its fields": (
        {"is": "module", "class": "diffppl.model.scaling.Scaling", "fields": {"loc": 1}},
    ),
    "an unknown tag": ({"is": "reduce", "value": "x"},),
    "no tag": ({"class": "x"},),
    "an array that is not there": ({"is": "array", "index": 3},),
    "a dtype of objects": (0, [{"dtype": "object", "shape": [1]}], b"\0" * 8),
    "a shape too large": (0, [{"dtype": "float32", "shape": [2**40]}], b"\0" * 8),
    "a shape too small": (0, [FLOAT], b"\0" * 8),
    "a shape below zero": (0, [{"dtype": "float32", "shape": [-1]}], b""),
    "foreign arrays": ({"is": "foreign", "name": "x", "indices": [0]}, [FLOAT], b"\0" * 4),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_and_nothing_is_imported(name: str, tmp_path: Path):
    path = tmp_path / "forged.dppl"
    forge(path, *FORGED[name])
    before = set(sys.modules)
    with pytest.raises(dp.LoadError, match="cannot be loaded"):
        dp.load(path)
    assert set(sys.modules) == before


def test_a_file_deeper_than_the_stack_is_refused(tmp_path: Path):
    path = tmp_path / "deep.dppl"
    text = b'{"arrays": [], "value": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    path.write_bytes(b"diffppl 1 %08x %d\n" % (zlib.crc32(text), len(text)) + text)
    with pytest.raises(dp.LoadError, match="description is invalid"):
        dp.load(path)


def test_another_version_of_a_class_says_so(tmp_path: Path):
    path = tmp_path / "old.dppl"
    forge(path, {"is": "module", "class": "diffppl.model.scaling.Scaling", "fields": {"loc": 0}})
    with pytest.raises(
        dp.LoadError, match=r"fields \['loc'\], .* has \['loc', 'rest', 'scale'\].*an"
    ):
        dp.load(path)
    forge(path, {"is": "module", "class": "diffppl.model.scaling.Scalings", "fields": {}})
    with pytest.raises(dp.LoadError, match="Scalings, which this version of diffppl lacks"):
        dp.load(path)
