"""The model: what it takes, what it refuses, and its units."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp

from .registry import PROCESSES

SCHEDULE = dp.schedules.reciprocal(6)


class Echo(eqx.Module):
    """Says its input, and how often it was told the time."""

    def __call__(self, x_t, t, context):
        return x_t * t


def gaussian(**options):
    return dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), Echo(), (2, 3), **options)


# What it takes ----------------------------------------


def test_the_prediction_follows_from_the_process_and_the_network():
    assert gaussian().prediction == dp.predictions.Velocity()
    bits = dp.BernoulliDiffusion(SCHEDULE)
    network = dp.networks.MLP((3,), width=4, depth=1, key=jax.random.key(0))
    assert dp.DiffusionModel(bits, network, (3,)).prediction == dp.predictions.Data()
    known = dp.denoisers.Gaussian(SCHEDULE, jnp.zeros(2), 1.0)
    model = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), known, (2,))
    assert model.prediction == dp.predictions.Data(dp.predictions.LearnedVariance())


def test_batches_and_times_reach_the_network():
    model = gaussian(prediction=dp.predictions.Data())
    x_t = jnp.arange(24.0).reshape(4, 2, 3)
    np.testing.assert_allclose(model.denoise(x_t, 5), 5 * x_t)
    np.testing.assert_allclose(model.denoise(x_t[0], jnp.array(2)), 2 * x_t[0])
    kernel = model.reverse_kernel(x_t, 3)
    assert (kernel.batch_shape, kernel.event_shape) == ((4,), (2, 3))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_edge_is_asked_for_by_a_python_one(name):
    process = PROCESSES[name](SCHEDULE)
    last = () if process.num_categories is None else (process.num_categories,)

    class Zero(eqx.Module):
        def __call__(self, x_t, t, context):
            return jnp.zeros((*x_t.shape, *last))

    model = dp.DiffusionModel(process, Zero(), (3,))
    x_1 = jnp.array([0, 1, 1], process.dtype)
    estimate = model.estimate(x_1, 1)
    edge = model.as_event(process.final_step(x_1, estimate))
    log_prob = eqx.filter_jit(lambda kernel: kernel.log_prob(x_1))
    np.testing.assert_array_equal(log_prob(model.reverse_kernel(x_1, 1)), log_prob(edge))


def test_a_shorter_chain_asks_the_network_at_its_own_times():
    model = gaussian(prediction=dp.predictions.Data())
    shorter = dp.respaced(model, 3)
    x_t = jnp.ones((2, 3))
    assert shorter.num_steps == 3
    for t, level in enumerate(SCHEDULE.times(3)[1:], start=1):
        np.testing.assert_allclose(shorter.denoise(x_t, t), level * x_t)
    assert dp.respaced(model, 6) is model
    twice = dp.respaced(dp.respaced(model, 4), 2)
    np.testing.assert_allclose(twice.denoise(x_t, 2), 6 * x_t)


def test_it_says_what_it_is():
    network = dp.denoisers.Gaussian(SCHEDULE, jnp.zeros(2), jnp.ones(2))
    model = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,))
    assert repr(model).startswith("DiffusionModel(GaussianDiffusion, num_steps=6, event_shape=(2,)")


# Units ----------------------------------------


def test_units_are_undone_on_the_way_out():
    scaling = dp.Scaling(np.array([1.0, -2.0, 0.5]), -3.0)
    model = gaussian(scaling=scaling)
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(model.to_user(x)[0], [1.0, -5.0, -5.5])
    np.testing.assert_allclose(model.to_model(model.to_user(x)), x, atol=1e-6)
    assert model.log_abs_det() == pytest.approx(6 * np.log(3))
    assert gaussian().log_abs_det() == 0
    np.testing.assert_array_equal(gaussian().to_user(x), x)
    kernel = model.as_event(model.process.transition(x, 1))
    value = model.to_user(x)
    assert model.in_user_units(kernel).log_prob(value) == pytest.approx(
        float(kernel.log_prob(x)) - 6 * np.log(3), rel=1e-5
    )


def test_scaling_from_data_centres_and_brings_to_unit_second_moment():
    data = np.random.default_rng(0).normal(size=(500, 2)) * [3.0, 0.5] + [10.0, -4.0]
    whole = dp.Scaling.from_data(data, per_coordinate=False)
    assert whole.scale.shape == ()
    model_units = np.asarray(whole.to_model(jnp.asarray(data)))
    assert np.mean(model_units) == pytest.approx(0, abs=1e-5)
    assert np.mean(model_units**2) == pytest.approx(1, rel=1e-5)
    each = dp.Scaling.from_data(np.hstack([data, np.full((500, 1), 7.0)]), per_coordinate=True)
    np.testing.assert_allclose(each.loc, [*data.mean(0), 7.0], rtol=1e-5)
    np.testing.assert_allclose(each.scale, [*data.std(0), 1.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (0.0, 0.0, "scale must not be zero"),
        (0.0, np.array([1.0, np.nan]), "scale must be finite.*nan at .1."),
        (np.inf, 1.0, "loc must be finite.*inf"),
    ],
)
def test_bad_scalings_are_named(loc, scale, message):
    with pytest.raises(ValueError, match=message):
        dp.Scaling(loc, scale)


# What it refuses ----------------------------------------


def test_networks_of_the_wrong_shape_are_found_at_once():
    with pytest.raises(ValueError, match=r"network returns shape \(2, 3\), but .* \(2, 2, 3\)"):
        gaussian(prediction=dp.predictions.Velocity(dp.predictions.LearnedVariance()))

    class TwoArguments(eqx.Module):
        def __call__(self, x_t, t):
            return x_t

    with pytest.raises(ValueError, match=r"network could not be called as network\(x_t, t, con"):
        dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), TwoArguments(), (2,))


@pytest.mark.parametrize("shape", [(0,), (2, -1), (2.5,)])
def test_event_shapes_are_checked(shape):
    # Types are those of the signature; numbers are the model's own.
    with pytest.raises((ValueError, TypeError), match="event_shape"):
        dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), Echo(), shape)


def test_states_have_no_scaling():
    bits = dp.BernoulliDiffusion(SCHEDULE)
    with pytest.raises(
        ValueError, match="scaling was given.* BernoulliDiffusion are states, not numbers"
    ):
        dp.DiffusionModel(bits, Echo(), (2,), scaling=dp.Scaling())


def test_contexts_need_a_shape():
    with pytest.raises(ValueError, match="context was given, but the model has no context_shape"):
        gaussian().denoise(jnp.zeros((2, 3)), 2, jnp.zeros(1))


def test_kernel_moments_belong_to_their_own_steps():
    class Moments(eqx.Module):
        def __call__(self, x_t, t, context):
            return jnp.stack([x_t, x_t])

    model = dp.DiffusionModel(
        dp.GaussianDiffusion(SCHEDULE), Moments(), (2,), prediction=dp.predictions.KernelMoments()
    )
    assert dp.respaced(model, 6) is model
    with pytest.raises(ValueError, match="num_steps=3 cannot shorten .* KernelMoments"):
        dp.respaced(model, 3)
