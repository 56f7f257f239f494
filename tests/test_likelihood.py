"""Likelihoods against closed forms, enumeration and one another."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from numpyro.infer import Trace_ELBO
from numpyro.infer.util import log_density

import diffppl as dp
from diffppl.likelihood import ExactTrace, Hutchinson, path_work
from diffppl.model.probability_flow import noise_to_data

from . import oracles, registry
from .statistics import assert_mean, assert_within_standard_errors

TIGHT = dp.Integrator(rtol=1e-8, atol=1e-8)


def gaussian_model(schedule, mean, covariance, *, scaling=None):
    network = dp.denoisers.Gaussian(schedule, mean, covariance)
    return dp.DiffusionModel(
        dp.GaussianDiffusion(schedule), network, np.shape(mean), scaling=scaling
    )


# The ELBO on every draw ----------------------------------------------------------------------


def test_exact_kernels_leave_no_noise_in_the_elbo(x64):
    # Where the data are the base, every kernel is exact, the fixed last step too.
    model = gaussian_model(dp.schedules.cosine(7), np.zeros(3), 1.0)
    x_0 = jnp.array([0.4, -1.3, 2.0])
    exact = scipy.stats.norm.logpdf(x_0).sum()
    loss = jax.jit(lambda key: Trace_ELBO().loss(key, {}, model.reverse, model.guide, None, x_0))
    for seed in range(3):
        np.testing.assert_allclose(-loss(jax.random.key(seed)), exact, atol=1e-12)
    keys = jax.random.split(jax.random.key(9), 5)
    work = jax.jit(jax.vmap(lambda key: path_work(key, model, x_0)))(keys)
    np.testing.assert_allclose(work, -exact, atol=1e-12)


def test_exact_kernels_leave_only_the_last_steps_noise_for_any_normal_data(x64):
    # With alpha_bar_T = 0 the reverse chain down to x_1 is q's own, so that along every path
    #   log p(path) - log q(path) = log p(x_0|x_1) + log q(x_1) - log q(x_1|x_0).
    mean, variance = np.array([0.8, -0.4, 2.0]), np.array([0.3, 1.5, 0.01])
    schedule = dp.schedules.reciprocal(6)
    model = gaussian_model(schedule, mean, variance, scaling=dp.Scaling(5.0, 2.0))
    x_user = jnp.array([7.0, 3.5, 9.2])
    x_0 = (np.asarray(x_user) - 5) / 2
    a, beta = np.sqrt(5 / 6), 1 / 6
    normal = lambda x, m, v: scipy.stats.norm.logpdf(x, m, np.sqrt(v)).sum()

    @jax.jit
    def draw(key):
        guide = numpyro.handlers.seed(model.guide, key)
        trace = numpyro.handlers.trace(guide).get_trace(None, x_user)
        drawn = {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}
        log_p, _ = log_density(model.reverse, (None, x_user), {}, drawn)
        log_q, _ = log_density(model.guide, (None, x_user), {}, drawn)
        return log_p - log_q, drawn["x_t"][-1]

    for seed in range(3):
        difference, x_1 = draw(jax.random.key(seed))
        edge = normal(x_0, a * x_1, beta) - 3 * math.log(2)
        exact = edge + normal(x_1, a * mean, a**2 * variance + beta) - normal(x_1, a * x_0, beta)
        np.testing.assert_allclose(difference, exact, atol=1e-10)


def test_work_is_minus_the_elbo_on_average():
    mean, variance = np.array([0.8, -0.4]), np.array([0.3, 1.5])
    schedule = dp.schedules.cosine(10)
    model = gaussian_model(schedule, mean, variance, scaling=dp.Scaling(5.0, 2.0))
    x_0 = np.array([[0.1, -0.9], [1.5, 1.0]])
    bounds = oracles.gaussian_bound_at(x_0, mean, variance, schedule.alpha_bar()).sum(1)
    result = dp.jarzynski(jax.random.key(0), model, 5 + 2 * x_0, num_trajectories=2_000)
    assert result.work.shape == (2, 2_000)
    assert_mean(-result.work.T, bounds - 2 * math.log(2))


# Path weights, with every state written out --------------------------------------------------


@pytest.fixture(scope="module")
def bits():
    """A model of three bits, its states, and their exact probabilities under the model."""
    model = registry.KNOWN["listed-bernoulli"].model(dp.schedules.reciprocal(5))
    states = oracles.all_states(2, 3)
    return model, states, oracles.discrete_model_log_prob(model, states, states)


def test_the_mean_of_the_path_weights_is_the_likelihood(bits):
    model, states, log_prob = bits
    result = dp.jarzynski(jax.random.key(0), model, states, num_trajectories=4_000)
    assert_mean(np.exp(-np.asarray(result.work, np.float64)).T, np.exp(log_prob))
    estimate = result.log_likelihood
    assert_within_standard_errors(estimate.per_example, log_prob, estimate.per_example_error)
    # The dissipation is what the ELBO loses.
    elbo = -np.mean(result.work, axis=1)
    np.testing.assert_allclose(result.dissipation, estimate.per_example - elbo, atol=1e-5)
    assert np.all(result.dissipation > 0)
    assert np.all((result.effective_sample_size > 1) & (result.effective_sample_size < 4_000))


@pytest.mark.slow
def test_likelihoods_order(bits):
    model, states, log_prob = bits
    data, exact = (np.repeat(x[[1, 3, 4]], 1_500, axis=0) for x in (states, log_prob))
    result = dp.jarzynski(jax.random.key(0), model, data, num_trajectories=37)
    # Of 1, 4 and 32 paths, all different ones.
    parts = [result.work[:, :1], result.work[:, 1:5], result.work[:, 5:]]
    ladder = [dp.PathWork(work).log_likelihood.per_example for work in parts]
    assert_mean(ladder[0] - dp.elbo(jax.random.key(0), model, data).per_example, 0.0)
    for lower, upper in zip(ladder, [*ladder[1:], exact], strict=True):
        gain = np.asarray(upper - lower)
        assert gain.mean() > 3 * gain.std() / math.sqrt(gain.size)
    assert np.mean(exact - ladder[2]) < 0.2 * np.mean(exact - ladder[0])
    whole = dp.importance_bound(jax.random.key(0), model, data, num_particles=37)
    np.testing.assert_array_equal(whole.per_example, result.log_likelihood.per_example)


def test_a_chain_of_bits_in_equilibrium_dissipates_nothing(x64):
    # Data from the base, reverse = forward: every path says log base(x_0). For real data this
    # is `test_exact_kernels_leave_no_noise_in_the_elbo`.
    process = registry.PROCESSES["bernoulli-per-bit"](dp.schedules.sohl_dickstein(6))
    states = oracles.all_states(2, 3)
    log_base = np.asarray(process.base((3,)).log_prob(jnp.asarray(states)).sum(-1))
    probs = np.exp(log_base) / np.exp(log_base).sum()
    network = dp.denoisers.Enumerated(process, states, probs)
    model = dp.DiffusionModel(process, network, (3,))
    result = dp.jarzynski(jax.random.key(0), model, states[[1, 6]], num_trajectories=20)
    np.testing.assert_allclose(-result.work.T, np.tile(log_base[[1, 6]], (20, 1)), atol=1e-8)
    np.testing.assert_allclose(result.dissipation, 0, atol=1e-8)


@pytest.mark.slow
def test_the_heartbeat_has_the_likelihood_of_the_oracle():
    # Twenty bits, one beat in five, T = 500: -2.3589 bits, by enumeration of all count states.
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(500), rate=0.2)
    states = np.array([(np.arange(20) % 5 == phase).astype(int) for phase in range(5)])
    network = dp.denoisers.Enumerated(process, states, np.full(5, 0.2))
    model = dp.DiffusionModel(process, network, (20,))
    run = jax.jit(  # optimised, unlike other tests: it runs for long
        lambda key: dp.jarzynski(key, model, states, num_trajectories=4_000).log_likelihood,
        compiler_options={"xla_backend_optimization_level": 3},
    )
    estimate = run(jax.random.key(0))
    assert float(estimate.monte_carlo_error) / math.log(2) < 0.0025
    assert abs(float(estimate.bits) + 2.3589) < 0.01


# The probability flow ------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.TRACES)
def test_an_estimate_of_a_trace_is_unbiased(name):
    trace, x = registry.TRACES[name](), jnp.array([0.3, -1.2, 0.7])
    matrix = jnp.array([[1.3, -0.4, 0.9], [0.2, -0.8, 0.5], [-1.1, 0.6, 2.1]])

    def function(x):
        return jnp.tanh(matrix @ x)

    def estimate(key):
        return trace.trace(function, x, trace.probes(key, x.shape))

    found = jax.vmap(estimate)(jax.random.split(jax.random.key(0), 4_000)).mean(1)
    error = found.std() / np.sqrt(len(found)) + 1e-6  # rounding
    assert_within_standard_errors(found.mean(), jnp.trace(jax.jacobian(function)(x)), error)


def test_the_flow_density_of_normal_data_is_exact(x64):
    schedule = dp.schedules.reciprocal(300)
    mean, covariance = registry.MEAN, registry.COVARIANCE
    model = gaussian_model(
        schedule, mean, covariance, scaling=dp.Scaling(5.0, np.array([2.0, 0.5]))
    )
    x_0 = np.array([[4.0, 5.1], [6.2, 4.4], [8.0, 5.0]])
    noise = float(schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1])
    scale = np.diag([2.0, 0.5])
    exact = scipy.stats.multivariate_normal(
        5 + scale @ mean, scale @ (covariance + noise * np.eye(2)) @ scale
    )

    density = eqx.filter_jit(
        jax.vmap(jax.value_and_grad(lambda x: dp.flow_log_density(model, x, integrator=TIGHT)))
    )
    value, gradient = density(jnp.asarray(x_0))
    np.testing.assert_allclose(value, exact.logpdf(x_0), atol=1e-4)
    exact_gradient = -np.linalg.solve(exact.cov, (x_0 - exact.mean).T).T
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-3)


@pytest.mark.slow
def test_the_flow_density_is_that_of_the_flows_own_draws(x64):
    # Whatever the denoiser: log p(x_0) = log N(x_T) - log|det dx_0/dx_T|.
    model = registry.KNOWN["mixture"].model(dp.schedules.cosine(12))
    x_T = np.array([[0.3, -0.8], [-1.4, 0.1], [2.0, 1.0]])
    steps = 5e-3 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    flow = eqx.filter_jit(noise_to_data)
    integrator = dp.Integrator(rtol=1e-10, atol=1e-10)
    x_0 = flow(model, jnp.asarray(x_T[:, None] + steps), integrator=integrator)
    jacobian = np.stack([x_0[:, 1] - x_0[:, 2], x_0[:, 3] - x_0[:, 4]], -1) / 1e-2
    exact = scipy.stats.norm.logpdf(x_T).sum(1) - np.log(np.abs(np.linalg.det(jacobian)))
    density = eqx.filter_jit(dp.flow_log_density)(model, x_0[:, 0], integrator=integrator)
    np.testing.assert_allclose(density, exact, atol=1e-4)


@pytest.mark.slow
def test_the_flow_density_of_a_mixture():
    schedule, key = dp.schedules.cosine(100), jax.random.key(0)
    model = registry.KNOWN["mixture"].model(schedule)
    noise = float(schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1])
    prior = registry.KNOWN["mixture"].prior
    prior = prior._replace(covariances=prior.covariances + noise * np.eye(2))
    rng = np.random.default_rng(0)
    chosen = rng.choice(2, size=25, p=prior.weights)
    spread = np.sqrt(registry.VARIANCES[chosen] + noise)
    x_0 = prior.means[chosen] + spread[:, None] * rng.normal(size=(25, 2))
    density = eqx.filter_jit(dp.flow_log_density)
    exact = np.asarray(density(model, jnp.asarray(x_0), integrator=dp.Integrator()))
    np.testing.assert_allclose(exact, prior.log_prob(x_0), atol=1e-3)
    hopeless = dp.Integrator(rtol=1e-20, atol=1e-20)
    assert np.all(np.isnan(density(model, jnp.asarray(x_0), integrator=hopeless)))
    # Hutchinson's estimate is unbiased, and honest about its error.
    estimate = dp.flow_likelihood(key, model, x_0, trace=Hutchinson(20))
    assert_within_standard_errors(estimate.per_example, exact, estimate.per_example_error, num=6)
    assert_within_standard_errors(estimate.value, exact.mean(), estimate.monte_carlo_error)
    with pytest.raises(RuntimeError, match="raise integrator's max_steps"):
        dp.flow_likelihood(key, model, x_0, trace=Hutchinson(20), integrator=hopeless)


def test_a_chain_of_one_step_has_a_density():
    schedule = dp.schedules.Schedule(np.array([-4.0]))
    model = gaussian_model(schedule, np.array([0.5]), np.array([2.0]))
    abar = 1 / (1 + math.exp(4.0))
    exact = scipy.stats.norm.logpdf(1.5, 0, 1 / math.sqrt(abar))
    x_0, key = np.array([[1.5]]), jax.random.key(0)
    np.testing.assert_allclose(dp.flow_log_density(model, jnp.asarray(x_0)), [exact], rtol=1e-5)
    estimate = dp.flow_likelihood(key, model, x_0, trace=ExactTrace())
    np.testing.assert_allclose(estimate.value, exact, rtol=1e-5)
    assert estimate.monte_carlo_error == 0
    one_probe = dp.flow_likelihood(key, model, x_0, trace=Hutchinson(1))
    assert math.isnan(one_probe.monte_carlo_error)  # one draw does not say how it varies


# Entropies of a reverse step -----------------------------------------------------------------


def test_the_bracket_of_normal_data(x64):
    # Independent coordinates of unit second moment on average.
    variance = np.array([0.4, 1.6])
    schedule = dp.schedules.reciprocal(20)
    model = gaussian_model(schedule, np.zeros(2), variance)
    data = np.random.default_rng(0).normal(size=(5, 2))
    bracket = dp.entropy_bounds(jax.random.key(0), model, data)
    exact = reverse_entropy(variance, schedule)
    assert bracket.lower.shape == bracket.upper.shape == (20,)
    assert np.all(bracket.lower[1:] <= exact[1:])
    assert np.all(exact <= bracket.upper)
    assert bracket.lower[0] == -np.inf
    beta = np.asarray(schedule.beta())[1:]
    np.testing.assert_allclose(bracket.upper, np.log(2 * np.pi * np.e * beta), rtol=1e-10)
    width = np.sum(bracket.upper[1:] - bracket.lower[1:])
    np.testing.assert_allclose(width, math.log(20), rtol=1e-10)  # log(T)/2 a coordinate
    # Data of variance 4 have more entropy than the base, and break the upper bound.
    assert np.any(reverse_entropy(4 * np.ones(2), schedule) > bracket.upper)


def reverse_entropy(variance, schedule):
    """H(X_{t-1}|X_t) at t = 1..T for independent normal coordinates."""
    abar, beta = np.asarray(schedule.alpha_bar()), np.asarray(schedule.beta())
    spread = abar[:, None] * variance + 1 - abar[:, None]
    return 0.5 * np.log(2 * np.pi * np.e * beta[1:, None] * spread[:-1] / spread[1:]).sum(1)


def test_the_bracket_of_bits():
    # The rate is the data's mean, bit by bit; then the upper bound holds too.
    table = registry.KNOWN["listed-bernoulli"].prior
    rate = table.probabilities @ table.states
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(5), rate=rate)
    network = dp.denoisers.Enumerated(process, table.states, table.probabilities)
    model = dp.DiffusionModel(process, network, (3,))
    data = np.repeat(table.states, (table.probabilities * 1_000).round().astype(int), axis=0)
    bracket = dp.entropy_bounds(jax.random.key(0), model, data)
    states = oracles.all_states(2, 3)
    start = (states[:, None] == table.states).all(-1) @ table.probabilities
    for t in range(1, 6):
        joint = joint_of_neighbours(process, states, start, t)
        exact = entropy(joint) - entropy(joint.sum(0))
        assert bracket.lower[t - 1] <= exact + 0.02, t  # two Monte Carlo errors
        assert exact <= bracket.upper[t - 1] + 0.02, t
    assert bracket.lower[0] == 0
    # The forward steps themselves, exactly.
    joint = joint_of_neighbours(process, states, start, 3)
    exact = entropy(joint) - entropy(joint.sum(1))
    np.testing.assert_allclose(bracket.upper[2], exact, atol=0.02)


def joint_of_neighbours(process, states, start, t):
    """q(x_{t-1}, x_t) over all states of three bits."""
    rates, beta = np.asarray(process.rate), np.asarray(process.schedule.beta())
    per_bit = [oracles.chain_matrices(beta, [1 - rate, rate]) for rate in rates]

    def matrix(kind, t):
        parts = [np.asarray(tables[kind])[t] for tables in per_bit]
        return np.prod([p[states[:, None, i], states[None, :, i]] for i, p in enumerate(parts)], 0)

    return (start @ matrix(1, t - 1))[:, None] * matrix(0, t)


def entropy(probs):
    return scipy.stats.entropy(np.ravel(probs))


# Bad input -----------------------------------------------------------------------------------


def test_bad_input_is_named(bits):
    model, states, _ = bits
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_trajectories=0 must be"):
        dp.jarzynski(key, model, states, num_trajectories=0)
    with pytest.raises(ValueError, match="num_particles=0 must be"):
        dp.importance_bound(key, model, states, num_particles=0)
    with pytest.raises(ValueError, match=r"x_0 has shape \(8, 2\)"):
        dp.importance_bound(key, model, states[:, :2], num_particles=1)
    with pytest.raises(ValueError, match="batch_size=0 must be"):
        dp.jarzynski(key, model, states, num_trajectories=1, batch_size=0)
    with pytest.raises(ValueError, match="context was given"):
        dp.jarzynski(key, model, states, num_trajectories=1, context=jnp.zeros(8))
    with pytest.raises(
        ValueError, match="BernoulliDiffusion: the probability flow is undefined for discrete data"
    ):
        dp.flow_likelihood(key, model, states)
    with pytest.raises(
        ValueError, match="BernoulliDiffusion: the probability flow is undefined for discrete data"
    ):
        dp.flow_log_density(model, jnp.asarray(states))
    with pytest.raises(ValueError, match="num_probes=0 must be"):
        Hutchinson(0)
    absorbing = registry.KNOWN["listed-categorical-absorbing"].model(dp.schedules.reciprocal(5))
    with pytest.raises(ValueError, match="an absorbing chain"):
        dp.entropy_bounds(key, absorbing, states)


def test_an_estimate_speaks():
    estimate = dp.Estimate(jnp.array([-1.0, -2.0, -6.0]), jnp.array([0.3, 0.0, 0.4]))
    assert repr(estimate) == "Estimate(-3.000 ± 1.528 nats, n=3, Monte Carlo error 0.167)"
    np.testing.assert_allclose(estimate.bits, -3 / math.log(2), rtol=1e-6)
    assert math.isnan(dp.Estimate(jnp.zeros(1), jnp.zeros(1)).standard_error)
    with pytest.raises(ValueError, match="the event shape is unknown: call bits_per_dim"):
        _ = estimate.bits_per_dim
    bits = dp.likelihood.bits_per_dim(estimate, (2,))
    np.testing.assert_allclose(bits.per_example_error, np.array([0.3, 0, 0.4]) / math.log(4), 1e-6)
    assert repr(bits) == "Estimate(2.164 ± 1.102 bits/dim, n=3, Monte Carlo error 0.120)"
    for convert in (lambda: bits.bits, lambda: dp.likelihood.bits_per_dim(bits, (2,))):
        with pytest.raises(ValueError, match="the estimate is in bits/dim already"):
            convert()
    # Weights 1 and 3: log p = log 2, mean W = -log(3) / 2.
    work = dp.PathWork(jnp.array([[0.0, -math.log(3.0)]]))
    assert repr(work) == "PathWork(log p = 0.693 nats, dissipation 0.144, n=1, 2 paths each)"
    np.testing.assert_allclose(work.effective_sample_size, [16 / 10], rtol=1e-6)
    np.testing.assert_allclose(work.log_likelihood.per_example_error, [0.5], rtol=1e-6)
