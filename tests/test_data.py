import math
import sys
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy import integrate

import diffppl as dp
from diffppl.data import Crops, DeadLeaves, Dequantised, Flipped, InMemory, SwissRoll, dequantise
from diffppl.fitting.losses import AbstractLoss

from .registry import SOURCES
from .statistics import (
    assert_counts,
    assert_mean,
    assert_same_distribution,
    assert_within_standard_errors,
)

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 4, 6)).astype(np.uint8)


@eqx.filter_jit
def draw(key: Any, source: Any, size: int) -> Any:
    return source.batch(key, size)


# Every source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_draws_events_from_its_key_alone(name):
    source = SOURCES[name]()
    x, context = draw(KEY, source, 7)
    assert x.shape == (7, *source.event_shape)
    assert context is None or context.shape[0] == 7
    np.testing.assert_array_equal(x, draw(KEY, source, 7)[0])
    assert not np.array_equal(x, draw(jax.random.key(4), source, 7)[0])
    assert len(np.unique(np.asarray(x).reshape(7, -1), axis=0)) > 1
    assert draw(KEY, source, 1)[0].shape == (1, *source.event_shape)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_compiled_once(name):
    traces = []

    @eqx.filter_jit
    def traced(key, source):
        traces.append(None)
        return source.batch(key, 2)

    for seed in range(2):
        traced(jax.random.key(seed), SOURCES[name]())
    assert len(traces) == 1


def test_rows_are_drawn_with_equal_chances_and_with_their_contexts():
    source = InMemory(np.arange(5.0)[:, None], context=10 * np.arange(5)[:, None])
    x, context = draw(KEY, source, 4_000)
    np.testing.assert_array_equal(10 * x, context)
    assert_counts(np.bincount(np.asarray(x[:, 0], int), minlength=5), np.full(5, 1 / 5))


@pytest.mark.usefixtures("as_users_call_it")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InMemory(np.zeros((0, 2))), ValueError, "data is empty"),
        (lambda: InMemory(np.array(["a"])), TypeError, "data has dtype"),
        (lambda: InMemory(np.zeros((3, 2)), np.zeros((2, 1))), ValueError, "2 rows, and data have"),
        (lambda: Dequantised(IMAGES / 255), TypeError, "multiply and round"),
        (lambda: Dequantised(IMAGES.astype(int) + 9), ValueError, "0..255"),
        (lambda: Dequantised(InMemory(IMAGES / 255)), TypeError, "must draw whole numbers"),
        (lambda: dequantise(KEY, IMAGES / 255), TypeError, "images has dtype float64"),
        (lambda: dequantise(0, IMAGES), TypeError, "key=0 must be a typed key"),
        (lambda: Flipped(np.zeros((3, 4))), ValueError, "height, width"),
        (lambda: Crops(IMAGES[0, :, 0], (2, 2)), ValueError, "images has events of shape"),
        (lambda: Crops(IMAGES, (5, 2)), ValueError, "larger than the images"),
        (lambda: Crops(IMAGES, 2), ValueError, "size=2 must be a height and a width"),
        (lambda: DeadLeaves((8, 8, 3), (1.0, 2.0)), ValueError, "height and a width"),
        (
            lambda: DeadLeaves((8, 8), (2.0, 1.0)),
            ValueError,
            "radii=.2.0, 1.0. must be two numbers, 0 < low < high",
        ),
        (lambda: DeadLeaves((8, 8), (0.0, 1.0)), ValueError, "radii"),
        (
            lambda: DeadLeaves((8, 8), (1.0, 2.0), grey=dist.Normal(jnp.zeros(3), 1.0)),
            ValueError,
            "batch_shape",
        ),
        (lambda: SwissRoll(-1.0), ValueError, "noise=-1.0"),
        (lambda: dp.data.heartbeats(4, 5), ValueError, "period=5"),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Eight bits ---------------------------------------------------------------------------------------


def test_the_noise_is_uniform_and_new_each_time_and_never_reaches_the_next_level():
    levels = np.full((1_001, 333), 255, np.uint8)  # an odd number of them, where rounding is worst
    x = np.asarray(dequantise(KEY, levels))
    np.testing.assert_array_equal(np.floor(x), levels)
    assert_same_distribution((x - levels).ravel()[:100_000], "uniform")
    first, second = (x[:, i] - 255.0 for i in range(2))
    error = np.std((first - 0.5) * (second - 0.5)) / np.sqrt(first.size)
    assert_within_standard_errors(np.mean((first - 0.5) * (second - 0.5)), 0, error)

    source = Dequantised(IMAGES)
    assert [leaf.dtype for leaf in jax.tree.leaves(source)] == [np.uint8]
    again = Dequantised(InMemory(IMAGES[:1], context=np.ones((1, 2))))
    x, context = draw(KEY, again, 2)
    np.testing.assert_array_equal(np.floor(x), IMAGES[[0, 0]])
    assert not np.array_equal(x[0], x[1])
    np.testing.assert_array_equal(context, np.ones((2, 2)))


def test_bits_of_the_noisy_levels_are_the_entropy_of_the_levels():
    probabilities = np.exp(-0.5 * ((np.arange(256) - 90) / 25) ** 2)
    probabilities /= probabilities.sum()
    entropy = -np.sum(probabilities * np.log2(probabilities))
    levels = np.random.default_rng(1).choice(256, p=probabilities, size=(2_000, 3))
    x = np.asarray(dequantise(KEY, levels))
    best = np.log(probabilities)[np.floor(x).astype(int)].sum(axis=1)  # flat over each level
    missing = jnp.full(2_000, jnp.nan)
    bits = dp.likelihood.bits_per_dim(dp.Estimate(jnp.asarray(best), missing), (3,))
    assert_within_standard_errors(bits.value, entropy, bits.standard_error)
    # The same images, divided by 256: another density, the same code.
    scaled = dp.Estimate(jnp.asarray(best + 3 * math.log(256)), missing)
    same = dp.likelihood.bits_per_dim(scaled, (3,), level=1 / 256)
    np.testing.assert_allclose(same.value, bits.value, rtol=1e-5)
    assert repr(bits).startswith(f"Estimate({float(bits.value):.3f} ± ")


def test_the_papers_number_is_converted():
    # 5.4 bits per pixel of three colours, scaled to unit variance: 0.2516 of the range.
    nats = jnp.array([5.4 * math.log(2)])
    paper = dp.Estimate(nats, jnp.zeros(1))
    bits = dp.likelihood.bits_per_dim(paper, (1, 1, 3), level=1 / (256 * 0.2516))
    np.testing.assert_allclose(bits.value, 4.21, atol=0.005)
    # A model does it by its scaling, when its data are in levels.
    scaling = dp.Scaling(110.0, 256 * 0.2516)
    user = dp.Estimate(nats - scaling.log_abs_det((3,)), jnp.zeros(1))
    np.testing.assert_allclose(dp.likelihood.bits_per_dim(user, (3,)).value, bits.value, rtol=1e-5)
    null = dp.Estimate(jnp.array([-1.5 * math.log(2 * math.pi * math.e)]), jnp.zeros(1))
    np.testing.assert_allclose(dp.likelihood.bits_per_dim(null, (3,)).value, 2.0471, atol=1e-4)


def test_bits_of_a_bound_are_its_own():
    schedule = dp.schedules.log_snr_linear(5, noise_to_signal=(0.1, 20.0))
    denoiser = dp.denoisers.Gaussian(schedule, np.zeros(24), np.ones(24))
    scaling = dp.Scaling(100.0, 60.0)
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, (24,), scaling=scaling)
    bound = dp.elbo(KEY, model, dequantise(KEY, IMAGES).reshape(-1, 24))
    bits = dp.likelihood.bits_per_dim(bound, (24,))
    np.testing.assert_allclose(bits.value, bound.bits_per_dim, rtol=1e-6)
    error = np.std(np.asarray(bound.per_example) / 24 / np.log(2), ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(bits.standard_error, error, rtol=1e-4)
    with pytest.raises(ValueError, match="estimate is of events of 24"):
        dp.likelihood.bits_per_dim(bound, (4, 7))
    with pytest.raises(ValueError, match="level=0"):
        dp.likelihood.bits_per_dim(bound, (24,), level=0.0)


# Mirrors and windows ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (2,)])
def test_half_of_the_images_are_mirrored_left_to_right(channels):
    image = RNG.integers(0, 256, (1, 3, 4, *channels)).astype(np.uint8)
    axis = -1 if channels else None
    source = Flipped(InMemory(image, context=np.ones((1, 1))), channel_axis=axis)
    x, context = draw(KEY, source, 1_000)
    kept = np.all(np.asarray(x) == image, axis=tuple(range(1, x.ndim)))
    mirrored = np.all(np.asarray(x) == image[:, :, ::-1], axis=tuple(range(1, x.ndim)))
    np.testing.assert_array_equal(kept, ~mirrored)
    assert_counts([kept.sum(), mirrored.sum()], [0.5, 0.5])
    assert x.dtype == np.uint8
    assert context.shape == (1_000, 1)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (5, 3, 4)])
def test_channels_first_are_mirrored_left_to_right_where_told(shape):
    image = RNG.integers(0, 256, (1, *shape)).astype(np.uint8)
    axis = 0 if len(shape) == 3 else None
    x = np.asarray(draw(KEY, Flipped(image, channel_axis=axis), 50)[0])
    events = tuple(range(1, x.ndim))
    kept, mirrored = (np.all(x == y, axis=events) for y in (image, image[..., ::-1]))
    np.testing.assert_array_equal(kept, ~mirrored)
    assert 0 < kept.sum() < 50


def test_windows_of_images_with_channels_first():
    images = np.arange(2 * 2 * 6 * 5).reshape(2, 2, 6, 5)
    source = Crops(images, (2, 4), channel_axis=0)
    assert source.event_shape == (2, 2, 4)
    last = Crops(np.moveaxis(images, 1, -1), (2, 4))
    x, y = (np.asarray(draw(KEY, each, 200)[0]) for each in (source, last))
    np.testing.assert_array_equal(x, np.moveaxis(y, -1, 1))


DTYPES = "bool int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16".split()


@pytest.mark.parametrize("name", DTYPES)
def test_the_dtype_of_images_is_kept(name):
    images = jnp.asarray(RNG.integers(0, 2, (5, 4, 6)), jnp.dtype(name))
    for given in (images, np.asarray(images)):
        sources = InMemory(given), Flipped(given), Crops(given, (2, 3)), Flipped(InMemory(given))
        for source in sources:
            assert source.batch(KEY, 2)[0].dtype == jnp.dtype(name)
        assert InMemory(np.zeros((5, 1)), context=given).batch(KEY, 2)[1].dtype == jnp.dtype(name)


@pytest.mark.parametrize(("wide", "narrow"), [("int64", "int32"), ("uint64", "uint32")])
def test_numbers_of_64_bits_are_narrowed_where_they_fit(wide, narrow):
    most = np.iinfo(narrow).max
    fits = InMemory(np.array([0, most], wide))
    assert fits.data.dtype == jnp.dtype(narrow)
    np.testing.assert_array_equal(np.asarray(fits.data, np.int64), [0, most])
    with pytest.raises(ValueError, match=f"1 of 2 values .* beyond {narrow}"):
        InMemory(np.array([0, most + 1], wide))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(InMemory(np.array([0, most + 1], wide)).data, [0, most + 1])


def test_levels_out_of_range_that_nobody_could_look_at_are_nan():
    class Levels(dp.data.AbstractSource):
        rare: Any

        @property
        def event_shape(self):
            return (4,)

        def batch(self, key, size):
            is_rare = jax.random.uniform(key, (size, 4)) < 1e-4
            return jnp.where(is_rare, self.rare, 255).astype(jnp.int32), None

    for rare in (-1, 256, 2**20):
        x = np.asarray(draw(jax.random.key(1), Dequantised(Levels(rare)), 20_000)[0])
        assert 0 < np.isnan(x).sum() < 40
        assert np.nanmin(x) >= 255
        assert np.nanmax(x) < 256


def test_windows_are_parts_of_images_and_every_place_is_as_likely():
    images = np.arange(3 * 6 * 5 * 2).reshape(3, 6, 5, 2)
    source = Crops(images, (2, 4))
    assert source.event_shape == (2, 4, 2)
    windows = {
        (n, i, j): images[n, i : i + 2, j : j + 4]
        for n in range(3)
        for i in range(5)
        for j in range(2)
    }
    corners = {int(window[0, 0, 0]): place for place, window in windows.items()}
    x = np.asarray(draw(KEY, source, 6_000)[0])
    places = [corners[int(window[0, 0, 0])] for window in x]
    np.testing.assert_array_equal(x, [windows[place] for place in places])
    counts = [places.count(place) for place in windows]
    assert_counts(counts, np.full(30, 1 / 30))


# Dead leaves --------------------------------------------------------------------------------------

SIZE, RADII = (10, 14), (0.8, 7.0)


def mean_over_radii(function, exponent):
    """Of a function of the radius, under the density proportional to r^-exponent."""
    parts = [
        integrate.quad(lambda r, f=f: f(r) * r**-exponent, *RADII, limit=200)[0]
        for f in (function, lambda r: 1.0)
    ]
    return parts[0] / parts[1]


def shared_area(r, distance):
    """Of a disc and the same disc moved."""
    if distance >= 2 * r:
        return 0.0
    half = distance / 2
    return 2 * r**2 * math.acos(half / r) - 2 * half * math.sqrt(r**2 - half**2)


# Exponents at which one part of the mixture has a logarithm, and at which none has.
@pytest.mark.parametrize("exponent", [3.0, 1.5])
def test_two_pixels_see_the_same_leaf_as_often_as_they_should(exponent):
    source = DeadLeaves(SIZE, RADII, exponent=exponent)
    keys = jax.random.split(KEY, 4_000)
    leaves = np.asarray(jax.jit(jax.vmap(source.leaves))(keys))
    assert leaves.min() >= 0
    whole = mean_over_radii(lambda r: shared_area(r, 0.0), exponent)
    # In corners, along edges and in the middle: the law is the same everywhere.
    for a, b in [
        ((0, 0), (0, 1)),
        ((9, 13), (9, 12)),
        ((0, 0), (3, 4)),
        ((9, 13), (6, 9)),
        ((5, 3), (5, 11)),
        ((0, 13), (1, 11)),
        ((4, 7), (6, 8)),
    ]:
        distance = math.dist(a, b)
        shared = mean_over_radii(lambda r, d=distance: shared_area(r, d), exponent)
        same = leaves[:, *a] == leaves[:, *b]
        assert_mean(same, shared / (2 * whole - shared))


# In a small image the law of large discs counts for more.
@pytest.mark.parametrize(("exponent", "size"), [(3.0, SIZE), (3.0, (3, 4)), (1.5, (3, 4))])
def test_the_radii_of_discs_over_a_place_follow_the_power_law(exponent, size):
    source = DeadLeaves(size, RADII, exponent=exponent)
    row, column, radius = (np.asarray(x) for x in source.discs(KEY, 200_000))
    assert np.all((radius > 0.79) & (radius < 7.01))
    power = 3 - exponent  # a disc lies over a place with chances that go as r^2
    low, high = (r**power if power else math.log(r) for r in RADII)

    def cdf(r):
        return ((r**power if power else np.log(r)) - low) / (high - low)

    covering = [
        radius[(row - i) ** 2 + (column - j) ** 2 <= radius**2] for i, j in [(0, 0), (1, 2)]
    ]
    for over in covering:
        assert_same_distribution(over, cdf)
    counts = [over.size for over in covering]
    error = math.sqrt(sum(counts))  # at most: some discs lie over both places
    assert_within_standard_errors(counts[0] - counts[1], 0, error)


def test_grey_levels_are_uniform_and_as_correlated_as_the_leaves():
    x = np.asarray(draw(KEY, DeadLeaves(SIZE, RADII), 4_000)[0])
    for place in [(0, 0), (9, 5)]:
        assert_same_distribution(x[:, *place], "uniform")
    whole, shared = (
        mean_over_radii(lambda r, d=d: shared_area(r, d), 3.0) for d in (0.0, math.hypot(1, 2))
    )
    product = (x[:, 0, 0] - 0.5) * (x[:, 1, 2] - 0.5)
    assert_mean(product, shared / (2 * whole - shared) / 12)


def test_leaves_may_have_colours_or_labels():
    grey = dist.Normal(jnp.array([0.0, 5.0, -5.0]), 1.0).to_event(1)
    source = DeadLeaves((5, 6), (1.0, 4.0), grey=grey)
    x = np.asarray(draw(KEY, source, 3)[0])
    assert x.shape == (3, 5, 6, 3)
    assert_mean(x[:, 0, 0] - [0.0, 5.0, -5.0], 0.0, 10.0)
    leaves = [jax.random.split(key)[0] for key in jax.random.split(KEY, 3)]
    numbers = np.asarray(jax.jit(jax.vmap(source.leaves))(jnp.stack(leaves)))
    for image, shown in zip(x, numbers, strict=True):
        for leaf in np.unique(shown):
            assert len(np.unique(image[shown == leaf], axis=0)) == 1
        assert len(np.unique(image.reshape(-1, 3), axis=0)) == len(np.unique(shown))
    labels = DeadLeaves((5, 6), (1.0, 4.0), grey=dist.Categorical(jnp.array([0.2, 0.8])))
    x, _ = eqx.filter_eval_shape(labels.batch, KEY, 2)
    assert (x.shape, x.dtype) == ((2, 5, 6), jnp.int32)


# Toys ---------------------------------------------------------------------------------------------


def test_the_roll_is_centred_scaled_and_as_noisy_as_asked():
    turns = np.linspace(1.5 * np.pi, 4.5 * np.pi, 200_001)
    curve = np.asarray(SwissRoll().curve(turns), np.float64)
    np.testing.assert_allclose(curve.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(np.mean(curve**2), 1.0, rtol=1e-4)
    x = np.asarray(draw(KEY, SwissRoll(), 4_000)[0])
    assert_mean(x, 0.0)
    assert_mean(np.mean(x**2, axis=1), 1.0)
    # Its angle, counted along the curve, is uniform.
    origin = np.asarray(SwissRoll().curve(jnp.array([0.0])))[0]
    unit = np.linalg.norm(np.asarray(SwissRoll().curve(jnp.array([6.0])))[0] - origin) / 6
    angle = np.linalg.norm(x - origin, axis=1) / unit
    assert_same_distribution((angle - 1.5 * np.pi) / (3 * np.pi), "uniform")
    x = np.asarray(draw(KEY, SwissRoll(0.3), 4_000)[0])
    assert_mean(np.mean(x**2, axis=1), 1.0 + 0.3**2)


def test_heartbeats_beat_in_every_fifth_place():
    states = dp.data.heartbeats()
    assert states.shape == (5, 20)
    for phase, row in enumerate(states):
        np.testing.assert_array_equal(np.flatnonzero(row), np.arange(phase, 20, 5))
    assert dp.data.heartbeats(7, 3)[1].tolist() == [0, 1, 0, 0, 1, 0, 0]


# Loaders ------------------------------------------------------------------------------------------


def test_mnist_is_split_and_shaped(monkeypatch):
    calls = []
    pixels = (np.arange(70_000)[:, None] + 3 * np.arange(784)) % 251

    def fetch(name, **options):
        calls.append((name, options))
        return SimpleNamespace(
            data=pixels.astype(np.int16), target=(np.arange(70_000) % 10).astype(str).astype(object)
        )

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    train, test = dp.data.mnist(data_home="somewhere", cache=False)
    options = {"version": 1, "as_frame": False, "data_home": "somewhere", "cache": False}
    assert calls == [("mnist_784", options)]
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.images.dtype == np.uint8
    assert test.images[5, 2, 7] == (60_005 + 3 * (2 * 28 + 7)) % 251
    np.testing.assert_array_equal(test.labels[:3], [0, 1, 2])

    monkeypatch.setattr(
        "sklearn.datasets.fetch_openml",
        lambda *_, **__: SimpleNamespace(data=pixels[:5], target=np.zeros(5)),
    )
    with pytest.raises(RuntimeError, match=r"shape \(5, 784\)"):
        dp.data.mnist()


def test_mnist_says_what_is_missing(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(RuntimeError, match="OSError: no route.*where there is a network"):
        dp.data.mnist()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install diffppl\[data\]"):
        dp.data.mnist()


def test_cifar_is_read_from_its_files(tmp_path):
    records = np.random.default_rng(2).integers(0, 256, (6, 2, 3_073)).astype(np.uint8)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, record in zip(names, records, strict=True):
        record.tofile(tmp_path / name)
    train, test = dp.data.cifar10(tmp_path)
    assert train.images.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(train.labels, records[:5, :, 0].ravel())
    np.testing.assert_array_equal(test.labels, records[5, :, 0])
    # Row 4, column 7, green: the second plane.
    np.testing.assert_array_equal(train.images[3, 4, 7, 1], records[1, 1, 1 + 1_024 + 4 * 32 + 7])
    (tmp_path / "test_batch.bin").write_bytes(b"12345")
    with pytest.raises(ValueError, match="5 bytes"):
        dp.data.cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin is missing.*binary version"):
        dp.data.cifar10(tmp_path)


# In a fit -----------------------------------------------------------------------------------------

NUM_STEPS = 6
SCHEDULE = dp.schedules.log_snr_linear(NUM_STEPS, noise_to_signal=(0.1, 40.0))


class SquareLoss(AbstractLoss):
    """Compiles in no time: the mean square of data, of contexts, and of the weights less noise."""

    @property
    def label(self) -> str:
        return "mean square"

    def check(self, model: Any) -> None:
        pass

    def __call__(self, key: Any, model: Any, x_0: Any, context: Any) -> Any:
        weight = jax.tree.leaves(eqx.filter(model.network, eqx.is_inexact_array))[0].ravel()
        drift = jnp.mean((weight - jax.random.normal(key, weight.shape)) ** 2)
        extra = 0.0 if context is None else jnp.mean(context**2)
        return jnp.mean(x_0**2 * 1.0) + extra + 1e-3 * drift


def make_model(event_shape=(2,), context_shape=None):
    network = dp.networks.MLP(
        event_shape, width=8, depth=1, context_shape=context_shape, key=jax.random.key(0)
    )
    process = dp.GaussianDiffusion(SCHEDULE)
    return dp.DiffusionModel(process, network, event_shape, context_shape=context_shape)


def make_bits(event_shape):
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(NUM_STEPS), rate=0.2)
    network = dp.networks.MLP(event_shape, width=8, depth=1, key=jax.random.key(0))
    return dp.DiffusionModel(process, network, event_shape)


def short_fit(model, data, num_iterations=20, **options):
    return dp.fit(
        jax.random.key(1),
        model,
        data,
        num_iterations=num_iterations,
        batch_size=32,
        loss=SquareLoss(),
        optimizer=optax.sgd(1e-2),
        progress_bar=False,
        chunk=10,
        **options,
    )


def leaves_of(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def test_an_array_is_rows_in_memory():
    model = make_model(context_shape=(1,))
    data = (RNG.normal(size=(300, 2)) * [3.0, 1.0] + [10.0, -4.0]).astype(np.float32)
    context = RNG.normal(size=(300, 1))
    a = short_fit(model, data, context=context)
    b = short_fit(model, InMemory(data, context))
    for x, y in zip(leaves_of(a), leaves_of(b), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.history.loss, b.history.loss)


def test_a_fit_from_a_source_sees_scaled_draws_and_goes_on_where_it_stopped():
    model, source = make_model((4, 6)), Dequantised(IMAGES)
    whole = short_fit(model, source, 40)
    # The scaling is that of 10,000 draws from 50 images, and of the noise.
    scaling, values = whole.model.scaling, IMAGES.reshape(50, -1) + 0.5
    squares = ((values - values.mean()) ** 2).mean(axis=1) + 1 / 12
    spread = math.sqrt(squares.mean())
    error = values.mean(axis=1).std() / 100
    assert_within_standard_errors(scaling.loc, values.mean(), error)
    assert_within_standard_errors(scaling.scale, spread, squares.std() / 100 / (2 * spread))
    # What the loss sees has, so scaled, a mean square of 1, to which the weights add little.
    loss = whole.history.loss
    error = squares.std() / spread**2 / math.sqrt(32 * 40)
    assert_within_standard_errors(loss.mean(), 1.001, error)
    resumed = short_fit(model, source, 40, resume=short_fit(model, source, 20))
    for x, y in zip(leaves_of(whole), leaves_of(resumed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_source_of_bits_needs_no_scaling():
    bits = RNG.integers(0, 5, (60, 3, 4)) == 0
    result = short_fit(make_bits((3, 4)), Flipped(bits))
    assert result.model.scaling is None
    means = bits.reshape(60, 12).mean(axis=1)
    error = means.std() / math.sqrt(32 * 20)
    assert_within_standard_errors(result.history.loss.mean(), means.mean() + 1e-3, error)


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "message"),
    [
        (
            make_model((3,)),
            SwissRoll(),
            {},
            ValueError,
            r"SwissRoll, of events of shape \(2,\).*\(3,\)",
        ),
        (
            make_model(context_shape=(1,)),
            SwissRoll(),
            {},
            ValueError,
            r"contexts of shape None.*context_shape=\(1,\)",
        ),
        (
            make_model(),
            SwissRoll(),
            {"context": np.zeros((5, 1))},
            ValueError,
            "data is a source, which draws its own",
        ),
        (make_model(), InMemory(np.zeros((5, 3))), {}, ValueError, r"data has shape \(5, 3\)"),
        (
            make_model(),
            InMemory(np.full((5, 2), np.nan)),
            {},
            ValueError,
            "NaN or infinite values: 10 of 10",
        ),
        (
            make_bits((2,)),
            SwissRoll(),
            {},
            ValueError,
            "data has values outside the support of BernoulliDiffusion",
        ),
    ],
)
def test_a_source_that_does_not_suit_the_model_is_refused(model, data, options, error, message):
    with pytest.raises(error, match=message):
        short_fit(model, data, **options)
