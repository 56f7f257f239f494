"""Samplers against exact distributions, exact maps, and one another."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import diffppl as dp
from diffppl.model.probability_flow import noise_to_data
from diffppl.samplers import DDIM, Ancestral, DPMSolver, ProbabilityFlow, sample, sample_path

from . import oracles, registry
from .lower import lower_model
from .statistics import assert_counts, assert_mean, assert_moments

DETERMINISTIC = {"ddim": DDIM, "dpm-solver": DPMSolver, "probability-flow": ProbabilityFlow}


def schedule_to(num_steps, noise_to_signal=(0.01, 100.0)):
    return dp.schedules.log_snr_linear(num_steps, noise_to_signal)


def gaussian_model(schedule, mean, covariance, **kwargs):
    network = dp.denoisers.Gaussian(schedule, mean, covariance, **kwargs)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, np.shape(mean))


@pytest.fixture(scope="module")
def mixture():
    return registry.KNOWN["mixture"].model(schedule_to(400))


# Where the draws go ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.SAMPLERS)
def test_draws_follow_an_asymmetric_mixture(name, mixture):
    prior = registry.KNOWN["mixture"].prior
    x = np.asarray(sample(jax.random.key(3), mixture, (4_000,), sampler=registry.SAMPLERS[name]()))
    first = np.sum((x - prior.means[0]) ** 2, 1) < np.sum((x - prior.means[1]) ** 2, 1)
    # No draw of either component is nearer to the other, but for one in 10,000.
    assert_mean(first, prior.weights[0])
    for k, chosen in enumerate([first, ~first]):
        assert_mean(x[chosen], prior.means[k])
    assert_mean(x, prior.moments()[0])


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli-per-bit",
        "categorical-absorbing",
        "categorical-counts",
        "categorical-counts-absorbing",
    ],
)
def test_ancestral_draws_follow_the_chain_of_bits_and_categories(name):
    # Four steps: so few that leaving out the last one would show.
    model = registry.KNOWN[f"listed-{name}"].model(dp.schedules.reciprocal(4))
    number = model.process.num_categories or 2
    num_states = number + ("absorbing" in name)
    states = oracles.all_states(number, 3)
    chain_states = oracles.all_states(num_states, 3)
    start = np.exp(model.process.base((3,)).log_prob(jnp.asarray(chain_states)).sum(-1))
    tables = oracles.discrete_model_tables(model, chain_states, states)
    with numpyro.validation_enabled(False):  # an absorbing chain never comes to some states
        exact = oracles.model_marginals(lambda t: np.nan_to_num(tables(t)), start, 4)[0]
    draws = sample(jax.random.key(0), model, (4_000,))
    assert draws.dtype == model.process.dtype
    counts = oracles.Table(states, exact).counts(draws)
    assert counts[-1] == 0
    assert_counts(counts[:-1], exact)


def test_ancestral_draws_have_the_chains_own_moments_last_step_included():
    mean, variance = np.array([0.8, -0.4]), np.array([0.3, 1.5])
    schedule = dp.schedules.reciprocal(3)  # beta_1 = 1/3
    model = gaussian_model(schedule, mean, variance)
    # The kernels are exact down to level 1; then comes p(x_0 | x_1) = N(sqrt(2/3) x_1, 1/3).
    level_1 = 2 / 3 * variance + 1 / 3
    draws = sample(jax.random.key(1), model, (8_000,))
    assert_moments(draws, 2 / 3 * mean, np.diag(2 / 3 * level_1 + 1 / 3))


# The flow, exact for normal data -----------------------------------------------------------------


def test_the_flow_is_the_exact_map_of_normal_data(x64):
    schedule = dp.schedules.reciprocal(200)
    mean, variance = jnp.array([0.3, -0.6]), jnp.array([0.2, 1.7])
    model = gaussian_model(schedule, mean, variance)
    x_T = jnp.array([[0.7, -1.1], [-2.0, 0.4]])
    # Every quantile keeps its place: (x_t - a_t m) / sd_t is the same at both ends.
    a = jnp.sqrt(schedule.alpha_bar())
    spread = jnp.sqrt(
        schedule.alpha_bar()[:, None] * variance + schedule.one_minus_alpha_bar()[:, None]
    )
    exact = mean + spread[1] * (x_T - a[-1] * mean) / spread[-1] / a[1]
    integrator = dp.Integrator(rtol=1e-8, atol=1e-8)
    x_0 = jax.jit(lambda x: noise_to_data(model, x, integrator=integrator))(x_T)
    np.testing.assert_allclose(x_0, exact, atol=2e-4)


def level_1(sampler, model, x_T):
    """Where a deterministic sampler is before its last step."""
    draw = eqx.filter_jit(lambda m, x: sampler.draw(jax.random.key(0), m, x, None, keep_path=True))
    return np.asarray(draw(model, x_T)[1][-2])


@pytest.mark.slow
def test_fast_samplers_converge_to_the_flow_at_their_own_order(x64):
    model = registry.KNOWN["mixture"].model(schedule_to(241, (0.05, 20.0)))
    x_T = jax.random.normal(jax.random.key(2), (20, 2))
    exact = level_1(ProbabilityFlow(dp.Integrator(1e-8, 1e-8)), model, x_T)

    def error(sampler, num_steps):
        found = level_1(sampler, dp.respaced(model, num_steps), x_T)
        return np.median(np.abs(found - exact))

    ddim = [error(DDIM(), num_steps) for num_steps in (16, 31)]
    assert 1.7 < ddim[0] / ddim[1] < 2.3  # first order
    solver = [error(DPMSolver(), num_steps) for num_steps in (16, 31)]
    assert 3.3 < solver[0] / solver[1] < 4.7  # second order
    assert solver[0] < 0.2 * ddim[0]


@pytest.mark.parametrize("variance", ["lower", "exact"])
def test_ddim_with_all_its_noise_is_ancestral_sampling(variance):
    # The same keys: not only the same distribution, but the same draws.
    mean, variances, schedule = np.array([0.5, -0.3]), np.array([0.9, 0.2]), schedule_to(30)
    make = {"lower": lower_model, "exact": gaussian_model}[variance]
    model = make(schedule, mean, variances)
    ancestral = sample(jax.random.key(0), model, (50,))
    ddim = sample(jax.random.key(0), model, (50,), sampler=DDIM(eta=1.0))
    np.testing.assert_allclose(ddim, ancestral, atol=2e-5)
    half = sample(jax.random.key(0), model, (50,), sampler=DDIM(eta=0.5))
    assert np.abs(half - ancestral).max() > 0.1


@pytest.mark.parametrize("num_steps", [5, 20])
def test_the_exact_chain_of_normal_data_is_right_at_any_number_of_steps(num_steps):
    """With the lower variance the standard deviation is 0.5 and 0.8 of the data's."""
    mean, variance = np.array([0.5, -0.3]), np.array([1.0, 0.25])
    model = gaussian_model(schedule_to(num_steps), mean, variance)
    draws = sample(jax.random.key(0), model, (20_000,))
    beta = float(model.process.schedule.beta()[1])  # of the last step, which is fixed
    assert_moments(draws, mean, np.diag(variance + 2 * beta * (1 - variance)))
    wrong = sample(jax.random.key(0), lower_model(schedule_to(num_steps), mean, variance), (2_000,))
    assert wrong.std(axis=0)[0] < 0.85


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_x_T_alone_decides_x_0_on_an_awkward_schedule(name):
    # Levels that nearly coincide, and an end without any signal.
    schedule = dp.schedules.Schedule(np.array([6.0, 2.01, 2.0, 1.99, -1.0, -np.inf]))
    model = registry.KNOWN["mixture"].model(schedule)
    x_T = jax.random.normal(jax.random.key(0), (4, 2))
    draw = eqx.filter_jit(DETERMINISTIC[name]().draw)
    draws = [draw(jax.random.key(k), model, x_T, None, keep_path=True) for k in (1, 2)]
    np.testing.assert_array_equal(draws[0][1], draws[1][1])
    x_0, path = draws[0]
    assert np.all(np.isfinite(path))
    np.testing.assert_array_equal(path[0], x_T)
    np.testing.assert_array_equal(path[-1], x_0)
    last = path[-2] / np.sqrt(schedule.alpha_bar()[1])
    last = last if name == "probability-flow" else eqx.filter_jit(model.denoise)(path[-2], 1)
    np.testing.assert_allclose(x_0, last, rtol=1e-5)


# The public entry -------------------------------------------------------------------------------


def test_a_path_begins_in_noise_and_ends_with_the_draw():
    model = eqx.tree_at(
        lambda m: m.scaling,
        registry.KNOWN["gaussian"].model(dp.schedules.cosine(8)),
        dp.Scaling(10.0, 3.0),
        is_leaf=lambda x: x is None,
    )
    path = sample_path(jax.random.key(0), model, (2, 3), num_steps=5)
    assert path.shape == (6, 2, 3, 2)
    draws = sample(jax.random.key(0), model, (2, 3), num_steps=5)
    np.testing.assert_allclose(path[-1], draws, rtol=1e-5)
    keys = jax.vmap(lambda key: jax.random.split(key)[0])(jax.random.split(jax.random.key(0), 6))
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys).reshape(2, 3, 2)
    np.testing.assert_allclose(path[0], 10 + 3 * noise, rtol=1e-5)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DPMSolver()], ids=repr)
def test_fewer_steps_are_those_of_the_respaced_model(sampler):
    model = registry.KNOWN["gaussian"].model(dp.schedules.cosine(8))
    draws = sample(jax.random.key(0), model, (3,), sampler=sampler, num_steps=5)
    respaced = sample(jax.random.key(0), dp.respaced(model, 5), (3,), sampler=sampler)
    np.testing.assert_array_equal(draws, respaced)


def test_a_sampler_with_its_own_steps_takes_no_number_of_them():
    model = registry.KNOWN["gaussian"].model(dp.schedules.cosine(8))
    with pytest.raises(ValueError, match="num_steps=5 .*ProbabilityFlow.*leave num_steps out"):
        sample(jax.random.key(0), model, sampler=ProbabilityFlow(), num_steps=5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_steps'"):
        DDIM(num_steps=5)


def test_the_batch_size_changes_nothing():
    model = registry.KNOWN["gaussian"].model(dp.schedules.cosine(4))
    draws = [sample(jax.random.key(0), model, (7,), batch_size=size) for size in (3, 1_000)]
    np.testing.assert_allclose(draws[0], draws[1], rtol=1e-5)
    # A draw's key does not depend on how many there are, either.
    one = sample(jax.random.key(0), model, ())
    np.testing.assert_allclose(one, draws[0][0], rtol=1e-5)
    assert sample(jax.random.key(0), model, (2, 0)).shape == (2, 0, 2)


class Echo(eqx.Module):
    """Says that x_0 is the context."""

    def __call__(self, x_t, t, context):
        return context


def test_draws_follow_their_contexts():
    model = dp.DiffusionModel(
        dp.GaussianDiffusion(schedule_to(40)),
        Echo(),
        (2,),
        prediction=dp.predictions.Data(),
        context_shape=(2,),
    )
    context = jnp.array([[1.0, -1.0], [5.0, 2.0], [0.0, 9.0]])
    for sampler in (Ancestral(), DPMSolver()):
        x = sample(jax.random.key(0), model, (4,), context=context, sampler=sampler)
        assert x.shape == (4, 3, 2)
        np.testing.assert_allclose(x, jnp.broadcast_to(context, (4, 3, 2)), atol=0.1)
    with pytest.raises(ValueError, match=r"context is missing.*context_shape=\(2,\)"):
        sample(jax.random.key(0), model)
    with pytest.raises(ValueError, match=r"context has shape \(3,\)"):
        sample(jax.random.key(0), model, context=jnp.zeros(3))
    with pytest.raises(ValueError, match="context has NaN"):
        sample(jax.random.key(0), model, context=jnp.array([jnp.nan, 0.0]))


@pytest.mark.usefixtures("as_users_call_it")
def test_bad_input_is_named():
    model = registry.KNOWN["gaussian"].model(dp.schedules.cosine(8))
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="key=0 must be a typed key"):
        sample(0, model)
    with pytest.raises(ValueError, match="shape=5 must be a tuple"):
        sample(key, model, 5)
    with pytest.raises(ValueError, match=r"shape=\(-1,\) must be a tuple"):
        sample(key, model, (-1,))
    with pytest.raises(TypeError, match="sampler=<class"):
        sample(key, model, sampler=DDIM)
    with pytest.raises(ValueError, match="batch_size=0 must be"):
        sample(key, model, batch_size=0)
    with pytest.raises(ValueError, match="context was given"):
        sample(key, model, context=jnp.zeros(2))
    with pytest.raises(ValueError, match="num_steps=9 is not between 1 and the chain's own 8"):
        sample(key, model, num_steps=9)
    with pytest.raises(ValueError, match="eta=1.5 must lie between 0"):
        DDIM(eta=1.5)


@pytest.mark.parametrize("name", [name for name in registry.SAMPLERS if name != "ancestral"])
def test_samplers_of_real_data_refuse_bits(name):
    model = registry.KNOWN["listed-bernoulli"].model(dp.schedules.reciprocal(4))
    with pytest.raises(ValueError, match=r"BernoulliDiffusion; Ancestral\(\) is the sampler"):
        sample(jax.random.key(0), model, sampler=registry.SAMPLERS[name]())


def test_a_flow_that_cannot_be_solved_says_so():
    model = registry.KNOWN["mixture"].model(dp.schedules.cosine(8))
    sampler = ProbabilityFlow(dp.Integrator(rtol=1e-7, atol=1e-7, max_steps=2))
    with pytest.raises(RuntimeError, match="raise the integrator's max_steps"):
        sample(jax.random.key(0), model, sampler=sampler)


def test_a_chain_that_ends_too_soon_is_named():
    schedule = dp.schedules.log_snr_linear(10, noise_to_signal=(0.05, 5.0))
    network = dp.denoisers.Gaussian(schedule, [20.0], [1.0])
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (1,))
    with pytest.warns(UserWarning, match=r"ends with too little noise.*noise_to_signal"):
        dp.sample(jax.random.key(0), model, (10,))
