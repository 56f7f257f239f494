"""The fitted reverse variance: its estimate against the truth, and what keeps it.

Networks here are exact up to a weight that never moves, so that `fit` has the variance alone to
find; its truth is then the mean of Var[x_0 | x_t], in closed form.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffppl as dp
from diffppl.fitting.losses import AbstractLoss
from diffppl.likelihood.elbo import bound
from diffppl.predictions.variance import LEVELS, FittedVariance, find_fitted, replace_fitted

from .registry import MEANS, VARIANCES, WEIGHTS
from .statistics import assert_within_standard_errors

KEY = jax.random.key(0)
SCHEDULE = dp.schedules.log_snr_linear(8, noise_to_signal=(0.05, 20.0))
# Of a second moment of 1, over the columns together
MEAN, VARIANCE = np.array([0.5, -0.3, 0.8]), np.array([1.5, 0.1, 0.42])


class Exact(eqx.Module):
    """E[x_0 | x_t] of a known answer, and a weight to train."""

    known: dp.denoisers.AbstractDenoiser
    weight: jax.Array

    def __call__(self, x_t: jax.Array, t: Any, context: jax.Array | None) -> jax.Array:
        return self.known(x_t, t, None)[0] + 0 * self.weight


class Nothing(AbstractLoss):
    """A loss that moves nothing."""

    @property
    def label(self) -> str:
        return "nothing"

    def check(self, model: Any) -> None:
        pass

    def __call__(self, key: Any, model: Any, x_0: Any, context: Any) -> Any:
        return 0.0 * model.network.weight


def exact_model(known: Any, shape: tuple[int, ...]) -> dp.DiffusionModel:
    return dp.DiffusionModel(
        dp.GaussianDiffusion(known.schedule),
        Exact(known, jnp.ones(())),
        shape,
        prediction=dp.predictions.Data(),
        scaling=dp.Scaling(),
    )


def fit(model: Any, data: Any, num_iterations: int = 600, **options: Any) -> dp.DiffusionModel:
    options = {"loss": Nothing(), "optimizer": optax.sgd(0.0), "batch_size": 400} | options
    return dp.fit(
        KEY, model, data, num_iterations=num_iterations, progress_bar=False, **options
    ).model


def normal_data(mean: Any = MEAN, variance: Any = VARIANCE, num: int = 20_000) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(num, *np.shape(mean)))
    return mean + np.sqrt(variance) * noise


FITTED = fit(exact_model(dp.denoisers.Gaussian(SCHEDULE, MEAN, VARIANCE), (3,)), normal_data())


def ratios(model: dp.DiffusionModel) -> np.ndarray:
    """Var[x_0 | x_t] / (1 - alpha_bar_t) at t = 1..T."""
    variance = find_fitted(model.prediction)
    return np.stack([variance.ratio(level) for level in model.process.schedule.log_snr()[1:]])


def exact_ratios(variance: np.ndarray, schedule: Any = SCHEDULE) -> np.ndarray:
    alpha_bar = np.asarray(schedule.alpha_bar(), np.float64)[1:]
    alpha_bar = alpha_bar.reshape(-1, *[1] * variance.ndim)
    return variance / (alpha_bar * variance + 1 - alpha_bar)


# The estimate -----------------------------------------------------------------------------------


def test_it_is_the_variance_of_the_data_per_level_and_coordinate():
    truth = exact_ratios(VARIANCE)
    # Squares of normal errors: of the data of every 20th iteration, which weigh as i^5, a share of
    # 11/36 counts, and an eighth of those are at one level.
    error = truth * np.sqrt(2 / (11 / 36 * 600 * 400 / 20 / 8))
    assert_within_standard_errors(ratios(FITTED), truth, error)
    assert np.max(error / truth) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:data")
def test_it_tells_the_pixels_of_images_apart():
    mean, variance = MEAN[:, None] * np.ones(2), VARIANCE[:, None] * np.array([1.0, 0.3])
    known = dp.denoisers.Gaussian(SCHEDULE, mean, variance)
    fitted = fit(exact_model(known, (3, 2)), normal_data(mean, variance), num_iterations=1_500)
    truth = exact_ratios(variance)
    error = truth * np.sqrt(2 / (11 / 36 * 1_500 * 400 / 20 / 8))
    assert_within_standard_errors(ratios(fitted), truth, error, num=5)  # of 48


@pytest.mark.slow
def test_its_bound_is_the_best_of_all_variances_that_are_constant():
    """For a mixture, whose Var[x_0 | x_t] is none; with the same noise for all."""
    schedule = dp.schedules.log_snr_linear(12, noise_to_signal=(0.05, 20.0))
    known = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, VARIANCES)
    rng = np.random.default_rng(0)
    which = rng.choice(2, size=20_000, p=WEIGHTS)
    data = MEANS[which] + np.sqrt(VARIANCES[which])[:, None] * rng.normal(size=(20_000, 2))
    with pytest.warns(UserWarning, match="mean square"):
        fitted = fit(exact_model(known, (2,)), data)

    def gain(prediction: Any) -> tuple[float, float]:
        other = eqx.tree_at(lambda model: model.prediction, fitted, prediction)
        bounds = [dp.elbo(KEY, model, data[:4_000]).per_example for model in (fitted, other)]
        change = np.asarray(bounds[0] - bounds[1], np.float64)
        return change.mean(), change.std() / np.sqrt(change.size)

    def scaled(factor: float) -> Any:
        return replace_fitted(
            fitted.prediction, lambda v: FittedVariance(factor * v.errors, v.weights)
        )

    kinds = (dp.predictions.LowerVariance(), dp.predictions.UpperVariance())
    others = [*map(dp.predictions.Data, kinds), scaled(0.7), scaled(1.4)]
    for mean, error in map(gain, others):
        assert mean > 4 * error
    mean, error = gain(scaled(1.02))  # a small change costs little: it is the best
    assert abs(mean) < 0.01


@pytest.mark.slow
def test_a_model_without_its_context_has_a_variance_of_its_own():
    """x_0 ~ N(context, 0.1), context ~ N(0, 0.9): knowing it is worth a lot."""

    class Shifted(eqx.Module):
        weight: jax.Array

        def __call__(self, x_t: jax.Array, t: Any, context: jax.Array | None) -> jax.Array:
            mean, variance = (jnp.zeros(1), 1.0) if context is None else (context, 0.1)
            alpha_bar, noise = SCHEDULE.alpha_bar()[t], SCHEDULE.one_minus_alpha_bar()[t]
            gain = jnp.sqrt(alpha_bar) * variance / (alpha_bar * variance + noise)
            return mean + gain * (x_t - jnp.sqrt(alpha_bar) * mean) + 0 * self.weight

    rng = np.random.default_rng(0)
    context = np.sqrt(0.9) * rng.normal(size=(20_000, 1))
    data = context + np.sqrt(0.1) * rng.normal(size=(20_000, 1))
    process = dp.GaussianDiffusion(SCHEDULE)
    model = dp.DiffusionModel(
        process,
        Shifted(jnp.ones(())),
        (1,),
        prediction=dp.predictions.Data(),
        scaling=dp.Scaling(),
        context_shape=(1,),
        context_scaling=dp.Scaling(),
    )
    models = [fit(model, data, context=context, num_iterations=1_000)]
    models += [dp.guided(models[0], 0.0), dp.respaced(models[0], 8)]
    for fitted in models:
        for given, variance in ((jnp.zeros(1), 0.1), (None, 1.0)):
            found = [fitted.estimate(jnp.zeros(1), t, given).variance for t in range(1, 9)]
            truth = (
                exact_ratios(np.array([variance]))
                * np.asarray(SCHEDULE.one_minus_alpha_bar())[1:, None]
            )
            np.testing.assert_allclose(found, truth, rtol=0.25)
    # Data without contexts say nothing of the model with one.
    alone = find_fitted(fit(model, data, num_iterations=100).prediction)
    np.testing.assert_array_equal(alone.errors, FittedVariance.start((1,)).errors)
    assert np.any(alone.without_context.errors != alone.errors)


def test_levels_between_those_of_the_grid_are_interpolated():
    table = FittedVariance(jnp.asarray(LEVELS**2), jnp.ones(len(LEVELS)))
    for level in (-20.0, -16.0, -3.2, 0.0, 0.4, 15.9, np.inf):
        truth = np.interp(level, LEVELS, LEVELS**2)
        np.testing.assert_allclose(table.ratio(jnp.asarray(level)), truth, rtol=1e-5, atol=1e-5)
    assert float(FittedVariance().ratio(jnp.asarray(1.0))) == 1.0  # a model that is not fitted


def test_levels_that_were_never_seen_are_like_the_nearest():
    start = FittedVariance.start((2,))
    seen = start.updated(
        jnp.array([-6.0, 1.1, 1.2]), jnp.array([[0.5, 9.0], [3.0, 1.0], [5.0, 2.0]]), jnp.ones(())
    )
    np.testing.assert_allclose(seen.ratio(jnp.asarray(1.15)), [4.0, 1.5], rtol=0.05)
    np.testing.assert_allclose(seen.ratio(jnp.asarray(-np.inf)), [0.5, 9.0], rtol=0.02)
    np.testing.assert_allclose(seen.ratio(jnp.asarray(9.0)), [4.0, 1.5], rtol=0.05)
    # Half of the new and half of the old, which weighs as much at every level as all of the new.
    again = seen.updated(jnp.array([-6.0]), jnp.array([[1.5, 3.0]]), jnp.asarray(0.25))
    np.testing.assert_allclose(again.ratio(jnp.asarray(-6.0)), [1.0, 6.0], rtol=0.01)


# What it leaves alone ---------------------------------------------------------------------------


def mlp_model(**options: Any) -> dp.DiffusionModel:
    network = dp.networks.MLP((3,), width=8, depth=1, key=KEY)
    return dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (3,), **options)


def test_no_gradient_reaches_it():
    table = find_fitted(FITTED.prediction)
    model, x_0 = mlp_model(prediction=dp.predictions.Velocity(table)), normal_data(num=16)

    def value(model: dp.DiffusionModel) -> jax.Array:
        return bound(KEY, model, jnp.asarray(x_0), None, dp.AllSteps()).value

    gradient = eqx.filter_jit(eqx.filter_grad(value))(model)
    assert not np.any(gradient.prediction.variance.errors)
    assert not np.any(gradient.prediction.variance.weights)
    assert np.any(gradient.network.last.bias != 0)


@pytest.mark.slow
def test_trainable_can_name_neither_it_nor_the_scaling():
    model = mlp_model(scaling=dp.Scaling(0.1, 1.0))
    options = {"loss": dp.losses.ELBOLoss(), "optimizer": optax.adam(1e-2), "num_iterations": 5}
    named = fit(model, normal_data(), trainable=eqx.is_inexact_array, **options)
    plain = fit(model, normal_data(), **options)
    assert eqx.tree_equal(named.scaling, model.scaling)
    assert eqx.tree_equal(named.prediction, plain.prediction, rtol=0.1, atol=0.1)


def test_the_simple_loss_does_not_see_it():
    x_0 = jnp.asarray(normal_data(num=64))
    models = [
        mlp_model(prediction=dp.predictions.Velocity(variance))
        for variance in (FITTED.prediction.variance, dp.predictions.LowerVariance())
    ]
    loss = eqx.filter_jit(dp.losses.SimpleLoss())
    losses = [float(loss(KEY, model, x_0, None)) for model in models]
    assert losses[0] == losses[1]


# What keeps it ----------------------------------------------------------------------------------


def changed(name: str, tmp_path: Any) -> dp.DiffusionModel:
    if name == "respaced":
        return dp.respaced(FITTED, 4)
    if name == "clipped":
        return dp.clipped(FITTED, -50.0, 50.0)
    dp.save(tmp_path / "model.dppl", FITTED, needs_like=True)
    return dp.load(tmp_path / "model.dppl", like=FITTED)


@pytest.mark.parametrize("name", ["respaced", "clipped", "loaded"])
def test_it_survives(name: str, tmp_path: Any):
    model = changed(name, tmp_path)
    x_t = jnp.array([[0.3, -1.0, 2.0]])
    kept = SCHEDULE.times(model.num_steps)
    for t in range(1, model.num_steps + 1):
        a, b = (m.estimate(x_t, s) for m, s in ((model, t), (FITTED, int(kept[t]))))
        np.testing.assert_allclose(a.variance, b.variance, rtol=1e-6)


def test_pooled_is_one_number_per_level():
    pooled = find_fitted(FITTED.prediction).pooled()
    table = replace_fitted(FITTED.prediction, lambda _: pooled)
    mean = ratios(FITTED).mean(axis=1)
    found = ratios(eqx.tree_at(lambda model: model.prediction, FITTED, table))
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    assert FittedVariance().pooled().errors is None


def test_it_goes_on_where_a_run_stopped():
    model, data = mlp_model(), normal_data()
    options = {"loss": dp.losses.ELBOLoss(), "optimizer": optax.adam(1e-3), "batch_size": 32}
    options |= {"progress_bar": False, "chunk": 10}
    whole = dp.fit(KEY, model, data, num_iterations=50, **options)
    half = dp.fit(KEY, model, data, num_iterations=23, **options)
    rest = dp.fit(KEY, model, data, num_iterations=50, resume=half, **options)
    assert eqx.tree_equal(rest.model, whole.model)
    assert eqx.tree_equal(rest.state, whole.state)
    assert not eqx.tree_equal(half.state.variance, whole.state.variance)


# What it is for -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [20, 50])
def test_draws_and_bound_of_a_fitted_network_are_right_at_few_steps(num_steps: int):
    """N(0, 1): with the lower variance the deviation is 0.80 and the bound 0.9 nats too low."""
    schedule = dp.schedules.log_snr_linear(num_steps)
    network = dp.networks.MLP((1,), width=64, depth=2, key=KEY)
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (1,))
    rng = np.random.default_rng(0)
    model = dp.fit(
        KEY, model, rng.normal(size=(20_000, 1)), num_iterations=1_000, progress_bar=False
    ).model
    draws = np.asarray(dp.sample(KEY, model, (40_000,)))
    assert abs(draws.std() - 1) < 0.02
    x_0 = rng.normal(size=(40_000, 1))
    lost = dp.elbo(KEY, model, x_0).per_example + 0.5 * (np.log(2 * np.pi) + x_0[:, 0] ** 2)
    assert abs(float(jnp.mean(lost))) < 0.05
