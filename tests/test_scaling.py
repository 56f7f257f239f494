"""Scaling from data, column by column; what `fit` warns of; contexts; double precision."""

import re
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffppl as dp
from diffppl.fitting.prepare import context_scaling

from .test_variance import Nothing

KEY = jax.random.key(0)
N = 20_000
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=N)
RARE = RNG.uniform(size=N) < 0.01

# Columns, and the mean and standard deviation that their scaling must have
COLUMNS: dict[str, tuple[np.ndarray, float, float]] = {
    "normal": (3 * NORMAL + 10, (3 * NORMAL + 10).mean(), 3 * NORMAL.std()),
    "small units": (1e-9 * NORMAL + 3e-9, 3e-9 + 1e-9 * NORMAL.mean(), 1e-9 * NORMAL.std()),
    "far from 0": (1.6e9 + 10 * NORMAL, 1.6e9 + 10 * NORMAL.mean(), 10 * NORMAL.std()),
    "two modes": (np.sign(NORMAL + 0.5) * 5 + 0.01 * NORMAL, *2 * [np.nan]),
    "exponential": (RNG.exponential(size=N), *2 * [np.nan]),
    "counts": (RNG.poisson(0.3, size=N), *2 * [np.nan]),
    "flags": (NORMAL > 2.2, *2 * [np.nan]),  # 1.4 % of them
    "rain": (np.where(NORMAL > 1.7, RNG.exponential(size=N), 0.0), *2 * [np.nan]),  # 4 %
    "outliers": (np.where(RARE, 1e3, 1.0) * NORMAL, 0.0, NORMAL[~RARE].std()),
    "outliers above": (np.where(RARE, 1e3, NORMAL), NORMAL[~RARE].mean(), NORMAL[~RARE].std()),
    "constant": (np.full(N, 7.1), 7.1, 1.0),
    "constant but for rounding": (0.1 * 3 + 1e-17 * np.sign(NORMAL), 0.3, 1.0),
    "zero": (np.zeros(N), 0.0, 1.0),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_has_the_moments_of_its_bulk(name: str):
    values, loc, scale = COLUMNS[name]
    if np.isnan(loc):  # all of it counts
        loc, scale = values.mean(), values.std()
    table = np.stack([NORMAL, values], axis=1)
    found = dp.Scaling.from_data(table)
    tolerance = 0.03 if "outliers" in name else 1e-6
    np.testing.assert_allclose(found.scale[1], scale, rtol=tolerance)
    exact = np.float64(found.loc[1]) + np.float64(found.rest[1])
    np.testing.assert_allclose(exact, loc, atol=tolerance * scale, rtol=1e-14)
    np.testing.assert_allclose(found.scale[0], NORMAL.std(), rtol=1e-6)  # its neighbour
    # What comes out is what went in, and has a second moment of 1.
    x = found.to_model(table)
    np.testing.assert_allclose(found.to_user(x)[:, 1], values, rtol=1e-6, atol=1e-6 * scale)
    if "constant" not in name and "zero" not in name and "outliers" not in name:
        assert np.mean(np.square(x[:, 1], dtype=np.float64)) == pytest.approx(1, rel=1e-4)


def test_images_have_one_scale_and_rare_bright_pixels_are_no_outliers():
    images = 0.01 * RNG.normal(size=(500, 8, 8))
    images[:, 3, 4] += 100 * RNG.uniform(size=500)  # one pixel in 64 has all the light
    found = dp.Scaling.from_data(images)
    np.testing.assert_allclose([found.loc, found.scale], [images.mean(), images.std()], rtol=1e-5)
    spoiled = np.concatenate([images, 1e3 * images[:5]])  # 1 % of the images are
    again = dp.Scaling.from_data(spoiled)
    np.testing.assert_allclose([again.loc, again.scale], [found.loc, found.scale], rtol=0.02)
    each = dp.Scaling.from_data(images, per_coordinate=True)
    np.testing.assert_allclose(each.scale, images.std(axis=0), rtol=1e-5)


# Warnings of fit ----------------------------------------------------------------------------------

SCHEDULE = dp.schedules.log_snr_linear(6, noise_to_signal=(0.02, 40.0))
TABLE = np.stack([NORMAL, 0.002 * NORMAL[::-1] + 5], axis=1)[:2_000]


class Linear(eqx.Module):
    """A network that takes any number of columns, and any context."""

    weight: jax.Array

    def __call__(self, x_t: jax.Array, t: Any, context: jax.Array | None) -> jax.Array:
        return self.weight * x_t


def model(num: int = 2, **options: Any) -> dp.DiffusionModel:
    process = dp.GaussianDiffusion(options.pop("schedule", SCHEDULE))
    return dp.DiffusionModel(process, Linear(jnp.ones(())), (num,), **options)


def fit(model: Any, data: Any, **options: Any) -> dp.DiffusionModel:
    options = {"num_iterations": 1, "loss": Nothing(), "optimizer": optax.sgd(0.0)} | options
    return dp.fit(KEY, model, data, progress_bar=False, **options).model


def messages(*args: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*args, **options)
    return [str(warning.message) for warning in caught]


class Frame:
    """What is known of a DataFrame."""

    columns = ("mass", "length")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return TABLE


def with_column(values: Any) -> np.ndarray:
    return np.stack([NORMAL, values], axis=1)[:2_000]


WARNED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "shared scale": (
        TABLE,
        {"scaling": dp.Scaling(0.0, 3.4)},
        r"^column 1 of data \(spread 0.00\d+, noise 0.068\): hardly exceeds the noise of the first "
        r"level.*scaling=Scaling.from_data\(data\)",
    ),
    "names": (Frame(), {"scaling": dp.Scaling(0.0, 3.4)}, "^column 'length' of data"),
    "constant": (
        with_column(np.full(N, 7.25)),
        {},
        r"^column 1 of data \(always 7.25\): never varies.*Leave it out",
    ),
    "outliers": (
        with_column(np.where(RARE, 1e3, NORMAL)),
        {},
        r"^column 1 of data \(\d.\d\d% of it, up to (999|1e\+03)\): has values more than 30.*log",
    ),
    "far from 0": (
        with_column(1.6e9 + 10 * NORMAL),
        {},
        r"^column 1 of data \(spread \S+, steps of 1.9e\+02\): is too far from 0 for float32. The "
        "fit is in float64, but draws are rounded to such steps: subtract a constant",
    ),
    "rounded already": (
        with_column(1e8 + 100 * NORMAL).astype(np.float32),
        {},
        r"^column 1 of data .* is too far from 0 for float32. Data are rounded to such steps",
    ),
    "all constant": (np.full((50, 2), 3.0), {}, "column 0 of data .* column 1 of data"),
}


@pytest.mark.parametrize("name", WARNED)
def test_it_warns_by_column_and_names_the_remedy(name: str):
    data, options, message = WARNED[name]
    found = messages(model(), data, **options)
    assert any(re.search(message, line) for line in found), found
    others = [line for line in found if "mean square" not in line]
    assert len(others) == 1
    if not options:  # what was already done is not advised
        assert not any("from_data" in line for line in found)


def test_images_that_never_vary_are_named():
    process = dp.GaussianDiffusion(SCHEDULE)
    images = dp.DiffusionModel(process, Linear(jnp.ones(())), (2, 2))
    assert messages(images, np.ones((20, 2, 2)))[0].startswith("data (always 1): never varies")


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        np.stack([c for c, *_ in list(COLUMNS.values())[:7] if c.max() < 1e6], axis=1)[:4_000],
        RNG.normal(size=(100, 2)),
    ],
    ids=["table", "columns", "few"],
)
def test_it_is_silent_where_all_is_well(data: np.ndarray):
    assert messages(model(data.shape[1]), data) == []


def test_small_columns_of_a_table_are_not_noise():
    """Units as unlike as 1e-6 and 1e6: the draws of each column have its standard deviation."""
    z = RNG.normal(size=(5_000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    data = z * [1e-6, 1e6] + [1e-3, 5.0]
    network = dp.networks.MLP((2,), width=64, depth=2, key=KEY)
    process = dp.GaussianDiffusion(dp.schedules.log_snr_linear(30))
    fitted = fit(
        dp.DiffusionModel(process, network, (2,)),
        data,
        num_iterations=600,
        loss=dp.losses.ELBOLoss(),
        optimizer=optax.adam(3e-3),
    )
    draws = np.asarray(dp.sample(KEY, fitted, (10_000,)), np.float64)
    np.testing.assert_allclose(draws.std(axis=0), data.std(axis=0), rtol=0.1)
    np.testing.assert_allclose(np.corrcoef(draws.T)[0, 1], 0.8, atol=0.1)


# Double precision -------------------------------------------------------------------------------


def known(loc: float, scale: float, **options: Any) -> dp.DiffusionModel:
    schedule = dp.schedules.log_snr_linear(20, noise_to_signal=(0.05, 50.0))
    network = dp.denoisers.Gaussian(schedule, np.zeros(1), 1.0)
    scaling = dp.Scaling(loc, scale)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (1,), scaling=scaling)


@pytest.mark.slow
@pytest.mark.parametrize("loc", [1.6e9, 1.6e9 + 53.25, -3e7])
def test_data_far_from_0_have_the_likelihood_of_centred_data(loc: float):
    """float32 resolves 128 at 1.6e9, where these data spread over 10."""
    x = 10 * NORMAL[:200, None]
    far, near = known(loc, 10.0), known(0.0, 10.0)
    functions = {
        "elbo": lambda model, x: dp.elbo(KEY, model, x).per_example,
        "importance": lambda model, x: (
            dp.importance_bound(KEY, model, x, num_particles=2).per_example
        ),
        "flow": lambda model, x: dp.flow_likelihood(KEY, model, x).per_example,
        "density": lambda model, x: dp.flow_log_density(model, x),
        "entropy": lambda model, x: dp.entropy_bounds(KEY, model, x).lower[1:],
        "model units": lambda model, x: model.to_model(x),
    }
    for name, function in functions.items():
        a, b = function(far, x + loc), function(near, x)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:column 0 of data .* is too far from 0")
def test_a_fit_of_data_far_from_0_is_that_of_centred_data():
    x = 10 * NORMAL[:2_000, None]
    far, near = (fit(model(1), x + loc, num_iterations=30) for loc in (1.6e9, 0.0))
    bounds = [dp.elbo(KEY, m, x + loc) for m, loc in ((far, 1.6e9), (near, 0.0))]
    np.testing.assert_allclose(bounds[0].value, bounds[1].value, rtol=1e-4)
    entropy = np.log(10) + 0.5 * np.log(2 * np.pi * np.e)
    assert float(bounds[0].value) < -entropy + 4 * float(bounds[0].standard_error)
    held_out = dp.fit(
        KEY,
        model(1),
        x + 1.6e9,
        num_iterations=2,
        loss=Nothing(),
        optimizer=optax.sgd(0.0),
        validation_data=x + 1.6e9,
        progress_bar=False,
    )
    assert abs(held_out.history.validation_elbo[-1] + entropy) < 2


def test_a_scaling_with_a_trace_inside_agrees_with_itself():
    scaling = dp.Scaling(1.6e9 + 53.25, 10.0)
    x = jnp.array([1.6e9, 1.6e9 + 256])  # what float32 holds
    traced = jax.jit(lambda scaling, x: scaling.to_model(x))(scaling, x)
    np.testing.assert_allclose(traced, scaling.to_model(np.asarray(x)), rtol=1e-6)
    kernel = known(1.6e9 + 53.25, 10.0).in_user_units(
        dp.GaussianDiffusion(SCHEDULE).base((1,)).to_event(1)
    )
    z = (256 - 53.25) / 10
    truth = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(10)
    np.testing.assert_allclose(kernel.log_prob(x[1:]), truth, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [dp.data.InMemory, lambda x: dp.data.InMemory(np.zeros(len(x)), context=x)]
)
def test_sources_refuse_what_their_precision_loses(make: Any):
    table = with_column(1.6e9 + 10 * NORMAL)
    with pytest.raises(ValueError, match=r"number 1, that spreads over \d.* float32 resolves 1.*"):
        make(table)
    make(with_column(1.6e9 + 1e4 * NORMAL))
    make(with_column(np.full(N, 1.6e9 + 1)))  # nothing to resolve


# Contexts ---------------------------------------------------------------------------------------


def pairs(context: Any, size: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    context = np.asarray(context)[:size]
    return NORMAL[:size, None], context


YEARS = RNG.uniform(1_000, 3_000, size=(N, 1))
LABELS = RNG.integers(0, 4, size=N)
CONTEXTS: dict[str, tuple[np.ndarray, Any]] = {
    "raw units": (YEARS, (YEARS[:2_000].mean(), YEARS[:2_000].std())),
    "whole numbers": (np.round(YEARS).astype(int), None),
    "one-hot": (np.eye(4)[LABELS], "alone"),
    "flags and raw units": (np.concatenate([np.eye(4)[LABELS], YEARS], axis=1), "mixed"),
    "labels": (LABELS, "alone"),
    "labels as a column": (LABELS[:, None], "alone"),
    "constant": (np.full((N, 1), 42.0), (42.0, 1.0)),
    "images": (50 + 20 * RNG.normal(size=(2_000, 3, 3)), "shared"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_are_standardised_or_left_alone(name: str):
    context, wanted = CONTEXTS[name]
    data, context = pairs(context)
    found = fit(model(1, context_shape=context.shape[1:]), data, context=context).context_scaling
    if wanted == "alone":
        assert found is None
    elif wanted == "mixed":
        np.testing.assert_array_equal(found.loc[:4], 0)
        np.testing.assert_array_equal(found.scale[:4], 1)
        np.testing.assert_allclose(found.scale[4], YEARS[:2_000].std(), rtol=1e-6)
    elif wanted == "shared":
        np.testing.assert_allclose([found.loc, found.scale], [context.mean(), context.std()])
    else:
        wanted = wanted or (context.mean(), context.std())
        np.testing.assert_allclose([found.loc[0], found.scale[0]], wanted, rtol=1e-6)


def test_labels_that_a_network_embeds_are_left_alone():
    network = dp.networks.UNet((4, 4), (4,), num_heads=1, num_classes=200, key=KEY)
    process = dp.GaussianDiffusion(SCHEDULE)
    labels = RNG.integers(0, 200, size=50)
    images = dp.DiffusionModel(process, network, (4, 4), context_shape=())
    assert context_scaling(images, labels.astype(np.float32)) is None
    assert context_scaling(model(1, context_shape=()), labels.astype(np.float32)) is not None
    assert context_scaling(model(1, context_shape=()), np.zeros((50, 0))) is None


def test_a_source_gives_the_contexts_scale_too():
    data, context = pairs(YEARS)
    found = fit(model(1, context_shape=(1,)), dp.data.InMemory(data, context=context))
    np.testing.assert_allclose(found.context_scaling.scale, [context.std()], rtol=1e-6)


def test_a_scaling_of_contexts_of_ones_own_stays():
    data, context = pairs(YEARS)
    own = dp.Scaling(2_000.0, 1_000.0)
    found = fit(model(1, context_shape=(1,), context_scaling=own), data, context=context)
    assert eqx.tree_equal(found.context_scaling, own)
    with pytest.raises(ValueError, match="context_scaling was given, but .* no context_shape"):
        model(1, context_scaling=own)


def test_contexts_that_float32_does_not_resolve_are_refused():
    data, context = pairs(1.6e9 + 10 * NORMAL[:, None])
    with pytest.raises(ValueError, match="context has a column, number 0, that spreads over"):
        fit(model(1, context_shape=(1,)), data, context=context)


class Told(eqx.Module):
    """Says its context, or a large number if there is none."""

    weight: jax.Array

    def __call__(self, x_t: jax.Array, t: Any, context: jax.Array | None) -> jax.Array:
        return jnp.full((1,), 50.0) if context is None else self.weight * context


@pytest.fixture(scope="module")
def told() -> dp.DiffusionModel:
    process = dp.GaussianDiffusion(SCHEDULE)
    options = {"prediction": dp.predictions.Data(), "context_shape": (1,)}
    data, context = pairs(YEARS)
    return fit(
        dp.DiffusionModel(process, Told(jnp.ones(())), (1,), **options), data, context=context
    )


@pytest.mark.slow
def test_every_use_of_a_model_scales_its_context(told: dp.DiffusionModel, tmp_path: Any):
    """The network's answer is E[x_0 | x_t] in model units, so that it shows what it was told."""
    context = np.array([2_600.0])
    z = (2_600 - YEARS[:2_000].mean()) / YEARS[:2_000].std()
    dp.save(tmp_path / "told.dppl", told, needs_like=True)
    loaded = dp.load(tmp_path / "told.dppl", like=told)
    for each in (
        told,
        dp.respaced(told, 3),
        dp.clipped(told, -9e3, 9e3),
        loaded,
        dp.guided(told, 0.0),
    ):
        found = each.denoise(jnp.zeros((2, 1)), 2, jnp.asarray(context, jnp.float32))
        np.testing.assert_allclose(found, z, rtol=1e-5)
    np.testing.assert_allclose(told.denoise(jnp.zeros(1), 2), 50.0)
    # Draws end at E[x_0 | x_1], elbo is of it, and so is the NumPyro distribution.
    sampler = dp.samplers.DDIM()
    draws = dp.sample(KEY, told, (3,), context=context, sampler=sampler)
    np.testing.assert_allclose(draws, told.to_user(jnp.full((3, 1), z)), rtol=1e-4)
    close, wrong = (
        dp.elbo(KEY, told, np.asarray(told.to_user(jnp.full((50, 1), x))), context=50 * [context])
        for x in (z, -z)
    )
    assert float(close.value) > float(wrong.value) + 1
    by_program = told(jnp.asarray(context)).sample(KEY, (200,))
    assert abs(float(by_program.mean()) - float(told.to_user(jnp.full((1,), z))[0])) < 0.5


@pytest.mark.slow
def test_raw_units_are_heard():
    data = (YEARS - 2_000) / 500 + 0.3 * NORMAL[:, None]
    network = dp.networks.MLP((1,), width=32, depth=2, context_shape=(1,), key=KEY)
    process = dp.GaussianDiffusion(dp.schedules.log_snr_linear(20))
    fitted = fit(
        dp.DiffusionModel(process, network, (1,), context_shape=(1,)),
        data,
        context=YEARS,
        num_iterations=500,
        loss=dp.losses.ELBOLoss(),
        optimizer=optax.adam(3e-3),
    )
    for year in (1_200.0, 2_000.0, 2_800.0):
        draws = np.asarray(dp.sample(KEY, fitted, (2_000,), context=np.array([year])))
        assert abs(draws.mean() - (year - 2_000) / 500) < 0.1
        assert abs(draws.std() - 0.3) < 0.06
