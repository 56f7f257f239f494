import re
import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffppl as dp
from diffppl.fitting import loop
from diffppl.fitting.decay import check_updates
from diffppl.fitting.fit import default_optimizer, fit
from diffppl.fitting.losses import AbstractLoss, ELBOLoss, SimpleLoss, WeightedLoss, noise_weights
from diffppl.fitting.result import FitResult, History, NonFiniteLossError
from diffppl.fitting.training import default_trainable, mean_elbo
from diffppl.likelihood.elbo import bound

from .statistics import assert_within_standard_errors

# One small model and one optimiser, so that most tests below share one compiled call.
NUM_STEPS = 6
SCHEDULE = dp.schedules.log_snr_linear(NUM_STEPS, noise_to_signal=(0.1, 20.0))
OPTIMIZER = optax.adam(3e-3)
DATA = np.random.default_rng(0).normal(size=(500, 2)) * [3.0, 1.0] + [10.0, -4.0]
KEY = jax.random.key(1)


def make_model(schedule: Any = SCHEDULE, **kwargs: Any) -> dp.DiffusionModel:
    network = dp.networks.MLP((2,), width=8, depth=1, key=jax.random.key(0))
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,), **kwargs)


MODEL = make_model()


class ToyLoss(AbstractLoss):
    """Compiles in no time; depends on the key, the data and all of the network."""

    traces: ClassVar[list] = []

    @property
    def label(self) -> str:
        return "toy loss"

    def check(self, model: Any) -> None:
        pass

    def __call__(self, key: Any, model: Any, x_0: Any, context: Any) -> Any:
        self.traces.append(None)
        weights = [leaf.ravel() for leaf in jax.tree.leaves(model.network) if eqx.is_array(leaf)]
        weights = jnp.concatenate(weights)
        noise = jax.random.normal(key, weights.shape)
        return jnp.mean((weights - 0.1 * noise - jnp.mean(x_0)) ** 2)


def short_fit(
    num_iterations: int = 20, *, key: Any = KEY, model: Any = MODEL, **kwargs: Any
) -> Any:
    options = {
        "batch_size": 32,
        "chunk": 10,
        "loss": ToyLoss(),
        "optimizer": OPTIMIZER,
        "progress_bar": False,
    }
    return fit(key, model, DATA, num_iterations=num_iterations, **(options | kwargs))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_identical(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# What is fit --------------------------------------------------------------------------------------


def test_fit_approaches_the_exact_model_and_does_not_pass_it():
    schedule = dp.schedules.log_snr_linear(10, noise_to_signal=(0.1, 20.0))
    network = dp.networks.MLP((2,), width=32, depth=1, output_shape=(2, 2), key=jax.random.key(0))
    learned = dp.predictions.Velocity(dp.predictions.LearnedVariance())
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,), prediction=learned)
    result = fit(KEY, model, DATA, num_iterations=600, batch_size=128, progress_bar=False)
    scaling = result.model.scaling
    mean, variance = scaling.to_model(jnp.asarray(DATA.mean(0))), DATA.var(0) / scaling.scale**2
    exact = dp.DiffusionModel(
        dp.GaussianDiffusion(schedule),
        dp.denoisers.Gaussian(schedule, mean, variance),
        (2,),
        scaling=scaling,
    )
    start = eqx.tree_at(lambda model: model.scaling, model, scaling, is_leaf=lambda x: x is None)
    key = jax.random.key(2)  # the same noise for all three
    best, reached, begun = (dp.elbo(key, m, DATA).per_example for m in (exact, result.model, start))
    gap = np.asarray(best - reached)
    error = gap.std(ddof=1) / np.sqrt(gap.size)
    assert gap.mean() > -4 * error
    assert gap.mean() < 0.05 * float(jnp.mean(best - begun))
    # The losses are the negative ELBO, in the units of the user; the last weights hardly move.
    assert result.history.label == "negative ELBO (nats per event)"
    loss = result.history.loss[-100:]
    error = np.hypot(loss.std(ddof=1) / 10, reached.std() / np.sqrt(500))
    assert_within_standard_errors(loss.mean(), -reached.mean(), error)


@pytest.mark.slow
def test_bits_are_fit_beyond_their_independent_rates():
    states, probs = np.array([[0, 0], [1, 1], [0, 1]]), np.array([0.3, 0.6, 0.1])
    data = states[np.random.default_rng(0).choice(3, size=2000, p=probs)]
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(10), rate=data.mean(0))
    network = dp.networks.MLP((2,), width=16, depth=1, key=jax.random.key(0))
    model = dp.DiffusionModel(process, network, (2,))
    result = fit(KEY, model, data, num_iterations=500, batch_size=128, progress_bar=False)
    exact = dp.DiffusionModel(
        process, dp.denoisers.Enumerated(process, data, np.full(2000, 1 / 2000)), (2,)
    )
    key = jax.random.key(2)
    best, reached = (dp.elbo(key, m, data).per_example for m in (exact, result.model))
    gap = np.asarray(best - reached)
    rates = data.mean(0)
    independent = float(np.sum(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)))
    assert gap.mean() > -4 * gap.std(ddof=1) / np.sqrt(gap.size)
    assert gap.mean() < 0.1 * (float(best.mean()) - independent)
    assert result.model.scaling is None


def test_only_the_network_is_trained():
    model = make_model(scaling=dp.Scaling.from_data(DATA))
    result = short_fit(model=model)
    for part in ("process", "scaling"):
        assert_identical(getattr(result.last_model, part), getattr(model, part))
    for before, after in zip(leaves(model.network), leaves(result.last_model.network), strict=True):
        assert not np.array_equal(before, after)


def test_default_trainable_leaves_rates_and_known_answers_alone():
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(4), rate=0.3)
    network = dp.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))
    spec = default_trainable(dp.DiffusionModel(process, network, (2,)))
    assert not any(jax.tree.leaves(spec.process))
    assert sum(jax.tree.leaves(spec.network)) == len(leaves(network))
    known = dp.denoisers.Gaussian(SCHEDULE, jnp.zeros(2), 1.0)
    spec = default_trainable(dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), known, (2,)))
    assert not any(jax.tree.leaves(spec))


def test_trainable_overrides():
    nothing = jax.tree.map(lambda _: False, MODEL)
    spec = eqx.tree_at(lambda model: model.network.last, nothing, replace=True)
    result = short_fit(trainable=spec)
    before, after = MODEL.network, result.last_model.network
    assert_identical((before.first, before.embedding), (after.first, after.embedding))
    assert not np.array_equal(before.last.weight, after.last.weight)


def test_the_arguments_are_left_as_they_were():
    before = leaves(MODEL)
    result = short_fit()
    again = leaves(result.state)
    short_fit(30, resume=result)
    for x, y in zip(before + again, leaves(MODEL) + leaves(result.state), strict=True):
        np.testing.assert_array_equal(x, y)


# Scaling ------------------------------------------------------------------------------------------


def test_scaling_comes_from_the_data_the_argument_or_the_model():
    found = short_fit(1).model.scaling
    np.testing.assert_allclose(found.loc, DATA.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.scale, DATA.std(0), rtol=1e-6)
    other = dp.Scaling(DATA.mean(0) + 0.1, DATA.std(0))
    assert_identical(short_fit(1, scaling=other).model.scaling, other)
    own = make_model(scaling=dp.Scaling(*np.float32([DATA.mean(0), DATA.std(0)])))
    assert_identical(short_fit(1, model=own).model.scaling, own.scaling)


def test_warns_of_data_off_unit_scale():
    with pytest.warns(UserWarning, match=r"mean square of 4 in the chain's units") as caught:
        short_fit(1, scaling=dp.Scaling(DATA.mean(0), DATA.std(0) / 2))
    assert len(caught) == 1


@pytest.mark.parametrize(("end", "warns"), [(3.0, True), (6.0, False)])
def test_warns_of_a_chain_that_does_not_end_in_noise(end: float, warns: bool):
    # E|x_0|^2 = 2 in model units, so KL is about 1 / end^2 nats: 0.11 and 0.028
    model = make_model(dp.schedules.log_snr_linear(NUM_STEPS, noise_to_signal=(0.1, end)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short_fit(1, model=model)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == int(warns)
    if warns:
        assert re.search(r"does not end in noise: at t = 6 .* 0\.10\d nats", messages[0])


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [10, 13])
def test_a_resumed_run_is_the_uninterrupted_one(cut: int):
    whole = short_fit(30)
    first = short_fit(cut)
    resumed = short_fit(30, resume=first)
    assert first.history.loss.size == cut
    assert_identical(resumed, whole)
    np.testing.assert_array_equal(resumed.history.loss, whole.history.loss)
    assert np.unique(whole.history.loss).size == 30  # fresh noise in every iteration


def test_an_interrupt_returns_what_there_is(monkeypatch: pytest.MonkeyPatch):
    run_chunk, calls = loop.run_chunk, []

    def interrupted(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_chunk(*args)

    monkeypatch.setattr(loop, "run_chunk", interrupted)
    with pytest.warns(UserWarning, match="interrupted after 20 of 40 iterations"):
        result = short_fit(40)
    assert result.history.loss.size == 20
    calls.clear()
    calls.extend([None] * 3)
    assert_identical(short_fit(40, resume=result), short_fit(40))
    calls[:] = [None] * 2
    with pytest.raises(KeyboardInterrupt):  # nothing to return yet
        short_fit(40)


def test_a_loss_that_is_not_finite_stops_the_fit_and_loses_nothing():
    good = short_fit(10)

    def rate(count: jax.Array) -> jax.Array:
        return jnp.where(count == 13, jnp.inf, 1e-3)

    with pytest.raises(
        NonFiniteLossError, match=r"iteration 15: the loss is inf.*after 10 iter"
    ) as e:
        short_fit(40, optimizer=optax.sgd(rate))
    assert isinstance(e.value, RuntimeError)
    result = e.value.result
    assert int(result.state.iteration) == result.history.loss.size == 10
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(result.model.network))
    np.testing.assert_array_equal(result.history.loss[0], good.history.loss[0])


def test_moving_average():
    """a_i = d_i a_{i-1} + (1 - d_i) w_i with d_i = min(decay, (1 + i) / (10 + i)), i = 0, 1, 2."""
    runs = [short_fit(n, ema_decay=0.12) for n in (1, 2, 3)]
    average = leaves(MODEL.network)
    for i, run in enumerate(runs):
        decay = min(0.12, (1 + i) / (10 + i))
        weights = leaves(run.last_model.network)
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for mine, theirs in zip(average, leaves(runs[-1].model.network), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-7)
    plain = short_fit(3, ema_decay=None)
    assert plain.state.average is None
    assert_identical(plain.model, plain.last_model)
    assert_identical(plain.last_model.network, runs[-1].last_model.network)


def test_validation():
    held_out = DATA + 0.1
    result = short_fit(25, validation_data=held_out, validation_every=10)
    assert result.history.validation_iterations.tolist() == [10, 20, 25]
    bound = dp.elbo(jax.random.key(5), result.model, held_out)
    value = result.history.validation_elbo[-1]
    error = np.sqrt(2) * bound.standard_error  # generous: the data are the same
    assert_within_standard_errors(value, bound.value, error)
    assert_identical(result.model, short_fit(25).model)  # looking changes nothing


def test_validation_in_blocks_visits_every_datum_once():
    x_0 = jnp.asarray(DATA[:23]) / 10
    model = make_model()
    # One step of a chain has no noise left in its bound, so blocks can be compared exactly.
    short = eqx.tree_at(
        lambda model: model.process,
        model,
        dp.GaussianDiffusion(dp.schedules.Schedule(np.zeros(1))),
    )
    whole = bound(KEY, short, x_0, None, dp.AllSteps()).value
    np.testing.assert_allclose(mean_elbo(KEY, short, x_0, None, dp.AllSteps(), 5), whole, rtol=1e-5)


def test_a_second_fit_compiles_nothing():
    short_fit(20)
    ToyLoss.traces.clear()
    scaling = dp.Scaling(DATA.mean(0) + 0.1, DATA.std(0))
    short_fit(33, key=jax.random.key(9), ema_decay=0.5, scaling=scaling)
    assert ToyLoss.traces == []
    short_fit(20, batch_size=31)  # another program: the counter works
    assert len(ToyLoss.traces) > 0
    assert default_optimizer(70) is default_optimizer(70)
    assert default_optimizer(70) is not default_optimizer(70, learning_rate=1e-4)


class PairLoss(AbstractLoss):
    """How far the data are from their contexts."""

    @property
    def label(self) -> str:
        return "distance"

    def check(self, model: Any) -> None:
        pass

    def __call__(self, key: Any, model: Any, x_0: Any, context: Any) -> Any:
        return jnp.mean((x_0[:, 0] - context[:, 0]) ** 2) + 0 * model.network.last.bias.sum()


def test_contexts_stay_with_their_data():
    network = dp.networks.MLP((2,), width=4, depth=1, key=KEY, context_shape=(1,))
    model = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,), context_shape=(1,))
    result = short_fit(
        3,
        model=model,
        loss=PairLoss(),
        scaling=dp.Scaling.from_data(DATA),
        context=((DATA - DATA.mean(0)) / DATA.std(0))[:, :1],
    )
    np.testing.assert_allclose(result.history.loss, 0.0, atol=1e-10)


def test_the_bar_shows_loss_and_validation(capsys: pytest.CaptureFixture[str]):
    short_fit(10, progress_bar=True, validation_data=DATA[:100], validation_every=10)
    shown = capsys.readouterr().err
    assert re.search(r"10/10 .*loss \d.*validation ELBO -\d.* nats", shown)
    result = short_fit(10)
    assert capsys.readouterr() == ("", "")
    assert len(repr(result)) < 200
    assert "10 iterations, loss " in repr(result)
    assert repr(result.state) == "FitState(iteration=10)"
    assert repr(History("loss")) == "History(0 iterations)"


def test_a_line_search_may_ask_for_the_same_loss_again():
    """`value_fn` has the noise and the minibatch of `value`, as quasi-Newton methods need it."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        again, gradient = jax.value_and_grad(extra["value_fn"])(params)
        same = jnp.array_equal(again, extra["value"])
        for a, b, c in zip(*map(jax.tree.leaves, (gradient, extra["grad"], updates)), strict=True):
            same &= jnp.array_equal(a, b) & jnp.array_equal(b, c)
        return jax.tree.map(jnp.negative, updates), state + same

    count = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), int), update)
    assert int(short_fit(7, optimizer=count).state.opt_state) == 7


# A learned schedule -------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_gradient_of_a_learned_schedule_is_that_of_frozen_noise():
    schedule = dp.schedules.Learned(5, beta_1=0.05, noise_to_signal=10.0)
    network = dp.denoisers.Gaussian(SCHEDULE, jnp.array([0.3, -0.2]), jnp.array([1.5, 0.4]))
    process = dp.GaussianDiffusion(schedule)
    learned = dp.predictions.Velocity(dp.predictions.LearnedVariance())
    model = dp.DiffusionModel(process, network, (2,), prediction=learned)
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)))

    @jax.jit
    @jax.value_and_grad
    def loss(schedule: Any) -> Any:
        changed = eqx.tree_at(lambda model: model.process.schedule, model, schedule)
        return ELBOLoss()(KEY, changed, x_0, None)

    gradient = loss(schedule)[1]
    assert float(gradient.log_snr_1) == 0.0
    step = 1e-6
    for i in range(4):
        change = step * jnp.eye(4)[i]
        up, down = (
            loss(eqx.tree_at(lambda s: s.raw_drops, schedule, schedule.raw_drops + sign * change))[
                0
            ]
            for sign in (1, -1)
        )
        assert abs(gradient.raw_drops[i]) > 1e-3
        np.testing.assert_allclose(gradient.raw_drops[i], (up - down) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_a_learned_schedule_beats_the_best_network_on_the_fixed_one():
    rng = np.random.default_rng(0)
    data = rng.choice([-1.0, 1.0], size=(2000, 2), p=[0.3, 0.7]) + 0.1 * rng.normal(size=(2000, 2))
    schedule = dp.schedules.Learned(5, beta_1=0.005, noise_to_signal=30.0)
    network = dp.networks.MLP((2,), width=64, depth=2, key=jax.random.key(0))
    result = fit(
        KEY,
        dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,)),
        data,
        num_iterations=1000,
        batch_size=64,
        scaling=dp.Scaling(),
        optimizer=optax.adam(1e-2),
        progress_bar=False,
    )
    learned = result.model.process.schedule
    assert not np.any(np.asarray(learned.raw_drops) == np.asarray(schedule.raw_drops))
    assert float(learned.log_snr_1) == float(schedule.log_snr_1)
    reached = dp.elbo(jax.random.key(2), result.model, data)
    limit = best_bound_of_constant_variances(schedule, data)
    assert float(reached.value) > limit + 5 * float(reached.standard_error)


def best_bound_of_constant_variances(schedule: Any, data: np.ndarray) -> float:
    """With the exact E[x_0 | x_t], and E Var[x_0 | x_t] of each level, a step costs
    log(1 + b_t^2 w_t / v_t) / 2."""
    means = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    best = dp.denoisers.GaussianMixture(schedule, np.array([0.09, 0.21, 0.21, 0.49]), means, 0.01)
    process, x_0 = dp.GaussianDiffusion(schedule), jnp.asarray(data)
    model = dp.DiffusionModel(process, best, (2,))
    bound = dp.elbo(jax.random.key(3), model, data)
    cost = 0.0
    for t in range(2, schedule.num_steps + 1):
        x_t = jnp.asarray(process.marginal(x_0, t).sample(jax.random.key(t)))
        b, _, variance = process.coefficients(t)
        w = model.estimate(x_t, t).variance.mean(axis=0)
        cost += float(jnp.sum(jnp.log1p(b**2 * w / variance))) / 2
    return float(bound.prior + bound.terms[0]) - cost


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["LowerVariance", "UpperVariance"])
@pytest.mark.parametrize("prediction", ["Data", "Noise", "Velocity"])
def test_simple_loss_is_the_squared_error_of_the_noise(prediction: str, name: str):
    """Differences of weighted divergences are differences of squared errors, at every step."""
    schedule = dp.schedules.cosine(7)
    process = dp.GaussianDiffusion(schedule)
    kind = getattr(dp.predictions, prediction)(getattr(dp.predictions, name)())
    network = dp.networks.MLP((1,), width=4, depth=1, key=KEY)
    model = dp.DiffusionModel(process, network, (1,), prediction=kind)
    x_0, eps = jnp.array(0.7), -1.3

    @jax.jit
    @jax.vmap
    def cost_and_error(t: Any, raw: Any) -> tuple[Any, Any]:
        a, s = jnp.sqrt(schedule.alpha_bar()[t]), jnp.sqrt(schedule.one_minus_alpha_bar()[t])
        x_t = a * x_0 + s * eps
        estimate = kind.estimate(process, raw, x_t, t)
        kl = process.kl(process.posterior(x_t, x_0, t), process.reverse(x_t, estimate, t))
        return kl, ((x_t - a * estimate.mean) / s - eps) ** 2

    times = jnp.arange(2, 8)
    (cost, error), (other_cost, other_error) = (
        cost_and_error(times, jnp.full(6, raw)) for raw in (0.2, 1.1)
    )
    weights = noise_weights(model)
    np.testing.assert_allclose(weights * (cost - other_cost), error - other_error, rtol=1e-7)
    if name == "LowerVariance":
        np.testing.assert_allclose(weights * cost, error, rtol=1e-7)


def test_simple_loss_of_an_untrained_velocity_in_closed_form():
    """v = 0 says eps = sqrt(1 - abar) x_t: off by abar eps - sqrt(abar (1 - abar)) x_0."""
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(1000, 2)), dtype=float)
    loss = eqx.filter_jit(
        lambda keys: jax.vmap(lambda key: SimpleLoss()(key, MODEL, x_0, None))(keys)
    )
    values = np.asarray(loss(jax.random.split(KEY, 30)))
    alpha_bar = SCHEDULE.alpha_bar()[2:]
    expected = jnp.mean(alpha_bar**2 + alpha_bar * (1 - alpha_bar) * jnp.mean(x_0**2))
    assert_within_standard_errors(values.mean(), expected, values.std(ddof=1) / np.sqrt(30))


def test_weighted_loss_with_weights_of_one_is_the_elbo_without_its_constants():
    x_0 = jnp.asarray(DATA[:50] / 10)
    losses = [WeightedLoss(np.ones(NUM_STEPS - 1)), WeightedLoss(np.eye(NUM_STEPS - 1)[2])]

    @eqx.filter_jit
    def values(model: Any) -> tuple[Any, list[Any]]:
        key_steps = jax.random.split(KEY)[1]
        whole = bound(KEY, model, x_0, None, dp.SampledSteps(1))
        return whole.terms[1:], [loss(key_steps, model, x_0, None) for loss in losses]

    terms, (ones, third) = values(MODEL)
    np.testing.assert_allclose(ones, -terms.sum(), rtol=1e-5)
    np.testing.assert_allclose(third, -terms[2], rtol=1e-5)


@pytest.mark.parametrize("loss", [SimpleLoss(), WeightedLoss(np.ones(NUM_STEPS - 1))])
def test_other_losses_are_for_real_data_and_fixed_schedules(loss: AbstractLoss):
    process = dp.BernoulliDiffusion(dp.schedules.linear(NUM_STEPS))
    model = dp.DiffusionModel(process, MODEL.network, (2,))
    with pytest.raises(ValueError, match="is for real data, but the process is BernoulliDiff"):
        fit(KEY, model, DATA > 0, num_iterations=1, loss=loss)
    with pytest.raises(ValueError, match="cannot learn a schedule.*Use losses.ELBOLoss"):
        short_fit(1, model=make_model(dp.schedules.Learned(NUM_STEPS, 0.1)), loss=loss)


def test_losses_refuse_what_they_cannot_weigh():
    with pytest.raises(ValueError, match=r"has weights of shape \(3,\).*num_steps=6"):
        short_fit(1, loss=WeightedLoss(np.ones(3)))
    with pytest.raises(ValueError, match="none of them negative"):
        WeightedLoss(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="alpha_bar_T = 0"):
        short_fit(1, model=make_model(dp.schedules.reciprocal(NUM_STEPS)), loss=SimpleLoss())


# Bad input ----------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "key": ({"key": 0}, TypeError, "key=0 must be a typed key"),
    "model": ({"model": MODEL.network}, TypeError, "model=<MLP> must be a DiffusionModel"),
    "num_iterations": ({"num_iterations": 0}, ValueError, "num_iterations=0 must be"),
    "num_iterations float": ({"num_iterations": 1e3}, ValueError, "num_iterations=1000.0"),
    "batch_size": ({"batch_size": True}, ValueError, "batch_size=True must be a whole"),
    "chunk": ({"chunk": -1}, ValueError, "chunk=-1"),
    "validation_every": ({"validation_every": 0}, ValueError, "validation_every=0"),
    "loss": (
        {"loss": "elbo"},
        TypeError,
        "loss='elbo' must be an AbstractLoss, such as .*ELBOLoss",
    ),
    "optimizer": (
        {"optimizer": 1e-3},
        TypeError,
        "optimizer=0.001 must be a GradientTransformation of optax.*optax.adam",
    ),
    "ema_decay": ({"ema_decay": 1.0}, ValueError, "ema_decay=1.0 must lie between 0 and 1"),
    "context": ({"context": DATA}, ValueError, "context was given"),
    "validation_data": ({"validation_data": DATA[:, :1]}, ValueError, "validation_data has shape"),
    "validation_context": (
        {"validation_data": DATA, "validation_context": DATA},
        ValueError,
        "validation_context was given",
    ),
    "validation_context alone": (
        {"validation_context": DATA},
        ValueError,
        "validation_context was given without validation_data",
    ),
    "trainable": ({"trainable": False}, ValueError, "trainable names no array"),
    "resume": ({"resume": MODEL}, TypeError, "resume=<DiffusionModel> must be a FitResult"),
}


@pytest.mark.usefixtures("as_users_call_it")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case: str):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        short_fit(**({"num_iterations": 1} | options))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:, :1], r"data has shape \(500, 1\)"),
        (DATA[:0], "data is empty"),
        (np.full((3, 2), np.nan), "data has NaN or infinite values: 6 of 6"),
    ],
)
def test_bad_data_are_refused(data: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        fit(KEY, MODEL, data, num_iterations=1)


def test_nothing_to_train_is_refused():
    known = dp.denoisers.Gaussian(SCHEDULE, jnp.zeros(2), 1.0)
    model = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), known, (2,))
    with pytest.raises(ValueError, match="nothing to train: its network, Gaussian, is an"):
        short_fit(1, model=model)


def test_discrete_processes_refuse_scalings_and_learned_schedules():
    with pytest.raises(ValueError, match="cannot learn its schedule"):
        dp.BernoulliDiffusion(dp.schedules.Learned(5, 0.1))
    process = dp.BernoulliDiffusion(dp.schedules.linear(NUM_STEPS))
    model = dp.DiffusionModel(process, MODEL.network, (2,))
    with pytest.raises(ValueError, match="scaling was given, but the data of Bernoulli"):
        fit(KEY, model, DATA > 0, num_iterations=1, scaling=dp.Scaling())


# How long an optimiser moves ----------------------------------------------------------------------

MOVING: dict[str, tuple[Any, bool]] = {
    # name: an optimiser, and whether it ends after 100 iterations
    "default": (default_optimizer(100), True),
    "adam": (optax.adam(1e-3), False),
    "cosine": (optax.adam(optax.cosine_decay_schedule(1e-3, 100)), True),
    "linear": (optax.sgd(optax.linear_schedule(1e-2, 0.0, 100), momentum=0.9), True),
    "warm-up": (optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)), True),
    "slow decay": (optax.adam(optax.exponential_decay(1e-3, 100, 0.5)), False),
    "steps": (optax.adam(optax.piecewise_constant_schedule(1e-3, {50: 0.1, 100: 0.0})), True),
    "several minibatches": (optax.MultiSteps(optax.adam(1e-3), 4).gradient_transformation(), False),
    "several, cosine": (
        optax.MultiSteps(
            optax.adam(optax.cosine_decay_schedule(1e-3, 25)), 4
        ).gradient_transformation(),
        True,
    ),
    "injected": (
        optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(1e-3, 100)),
        True,
    ),
    "line search": (optax.lbfgs(), False),
    "schedule-free": (optax.contrib.schedule_free_adamw(1e-3), False),
    "plateau": (optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()), False),
    "stateless": (optax.sgd(1e-3), False),
    "nothing": (optax.set_to_zero(), False),
}


@pytest.mark.parametrize("name", MOVING)
def test_an_optimiser_that_would_stand_still_is_refused(name: str):
    optimizer, ends = MOVING[name]
    params = eqx.filter(MODEL.network, eqx.is_inexact_array)
    for done, num_iterations in ((0, 100), (50, 100), (98, 100), (99, 100), (0, 90), (50, 120)):
        check_updates(optimizer, params, done, num_iterations)  # most of what is left is within
    for done, num_iterations in ((100, 200), (0, 200), (90, 150), (100, 103), (0, 1_000)):
        if not ends:
            check_updates(optimizer, params, done, num_iterations)
            continue
        with pytest.raises(
            ValueError, match=rf"decayed to zero.*default_optimizer.{num_iterations}"
        ):
            check_updates(optimizer, params, done, num_iterations)


def test_a_finished_run_goes_on_as_its_errors_advise():
    first = short_fit(20, optimizer=None)
    with pytest.raises(ValueError, match="num_iterations=20 counts those already done"):
        short_fit(20, optimizer=None, resume=first)
    with pytest.raises(ValueError, match=r"optimizer would make no steps.*default_optimizer\(40\)"):
        short_fit(40, optimizer=default_optimizer(20), resume=first)
    longer = short_fit(40, optimizer=default_optimizer(40), resume=first)
    assert_identical(longer, short_fit(40, optimizer=None, resume=first))
    # It learns as much as it does in the middle of a run.
    whole = short_fit(40, optimizer=None)
    start, end = first.last_model.network.last.bias, longer.last_model.network.last.bias
    half = short_fit(20, optimizer=default_optimizer(40)).last_model.network.last.bias
    moved = np.abs(end - start).max(), np.abs(whole.last_model.network.last.bias - half).max()
    assert moved[0] > 0.5 * moved[1] > 0


def test_what_a_source_rarely_draws_stops_the_fit():
    class Rare(dp.data.AbstractSource):
        value: float

        @property
        def event_shape(self) -> tuple[int, ...]:
            return (2,)

        def batch(self, key: Any, size: int) -> Any:
            return jnp.where(jax.random.uniform(key, (size, 2)) < 1e-4, self.value, 1.0), None

    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(4), rate=0.9)
    model = dp.DiffusionModel(process, MODEL.network, (2,))
    options = {"num_iterations": 400, "batch_size": 64, "progress_bar": False, "loss": ToyLoss()}
    good = fit(jax.random.key(0), model, Rare(0.0), **options)
    assert good.history.loss.size == 400
    for value in (0.5, 2.0):
        # Of 10,000 draws, which are looked at before, all may be good; seeds for which they are.
        for seed in range(20):
            try:
                fit(jax.random.key(seed), model, Rare(value), **options)
            except ValueError as error:
                assert "outside the support" in str(error)  # noqa: PT017
            except NonFiniteLossError as error:
                assert "a source of data that draws" in str(error)  # noqa: PT017
                break
        else:
            pytest.fail("it was never found in the loop")


def test_only_weights_are_ever_trained():
    scaled = make_model(scaling=dp.Scaling.from_data(DATA))
    for everything in (True, eqx.is_inexact_array):
        result = short_fit(10, model=scaled, trainable=everything)
        assert_identical(result.model.scaling, scaled.scaling)
        assert_identical(result.model.process, scaled.process)
        assert_identical(result.last_model, short_fit(10, model=scaled).last_model)
    nothing = jax.tree.map(lambda _: False, scaled)
    only = eqx.tree_at(lambda m: m.scaling.loc, nothing, replace=True)
    with pytest.raises(ValueError, match="trainable names no array .* in the network"):
        short_fit(10, model=scaled, trainable=only)


def test_what_cannot_be_resumed_is_refused():
    result: FitResult = short_fit(10)
    with pytest.raises(ValueError, match="num_iterations=10 counts those already done.*has 10"):
        short_fit(10, resume=result)
    with pytest.raises(ValueError, match="optimizer is not the kind"):
        short_fit(20, resume=result, optimizer=optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match="scaling was given, but a resumed fit keeps its own"):
        short_fit(20, resume=result, scaling=dp.Scaling())
    with pytest.raises(ValueError, match="model is not the one"):
        short_fit(20, resume=result, model=make_model(dp.schedules.log_snr_linear(7)))
    spec = eqx.tree_at(lambda m: m.network.last, jax.tree.map(lambda _: False, MODEL), replace=True)
    with pytest.raises(ValueError, match="trainable names other arrays"):
        short_fit(20, resume=result, trainable=spec)
