"""The evidence lower bound, against closed forms and sums over all states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import diffppl as dp
from diffppl.checks.arguments import check_key

from . import oracles
from .marks import slow
from .registry import EVENT_SHAPE, KNOWN, LOSSES, NETWORKS, PROCESSES
from .statistics import assert_mean, assert_within_standard_errors

MEAN, VARIANCE = np.array([0.5, -0.3]), np.array([1.6, 0.4])
X_0 = np.array([1.4, -0.9])


def normal_model(schedule, mean=MEAN, variance=VARIANCE, **options):
    network = dp.denoisers.Gaussian(schedule, mean, variance)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,), **options)


def repeated(x_0, n):
    return np.broadcast_to(x_0, (n, *x_0.shape))


# Real data ----------------------------------------


@pytest.mark.parametrize("steps", [dp.AllSteps(), dp.SampledSteps(), dp.SampledSteps(4)], ids=str)
@pytest.mark.parametrize("schedule", [dp.schedules.reciprocal(8), dp.schedules.log_snr_linear(8)])
def test_the_bound_of_one_datum_has_the_mean_of_the_closed_form(schedule, steps):
    model = normal_model(schedule, scaling=dp.Scaling(np.array([3.0, -1.0]), 2.0))
    x_user = 2.0 * X_0 + np.array([3.0, -1.0])
    bound = dp.elbo(jax.random.key(0), model, repeated(x_user, 4_000), steps=steps)
    exact = oracles.gaussian_bound_at(X_0, MEAN, VARIANCE, schedule.alpha_bar()).sum()
    assert_mean(bound.per_example, exact - 2 * np.log(2))


def test_the_terms_of_the_bound_are_those_of_the_closed_form():
    schedule = dp.schedules.cosine(8)
    alpha_bar, beta = (np.asarray(x, np.float64) for x in (schedule.alpha_bar(), schedule.beta()))
    model, data = normal_model(schedule), repeated(X_0, 1_000)
    bounds = [dp.elbo(key, model, data) for key in jax.random.split(jax.random.key(1), 16)]
    bound = bounds[0]
    edge = -0.5 * (np.log(2 * np.pi * beta[1]) + 1 - beta[1] + beta[1] * X_0**2).sum()
    end = oracles.normal_kl(np.sqrt(alpha_bar[-1]) * X_0, 1 - alpha_bar[-1], 0.0, 1.0).sum()
    assert bound.terms.shape == (8,)
    np.testing.assert_allclose(bound.terms[0], edge, rtol=1e-5)
    np.testing.assert_allclose(bound.prior, -end, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(bound.prior + bound.terms.sum(), bound.value, rtol=1e-5)
    # The steps one by one: what a chain of t steps has more than one of t - 1, but for the end.
    ends = oracles.normal_kl(
        np.sqrt(alpha_bar[1:, None]) * X_0, 1 - alpha_bar[1:, None], 0.0, 1.0
    ).sum(1)
    chains = [
        oracles.gaussian_bound_at(X_0, MEAN, VARIANCE, alpha_bar[: t + 1]).sum()
        for t in range(1, 9)
    ]
    truth = np.diff(chains) + np.diff(ends)
    assert_mean(np.stack([bound.terms[1:] for bound in bounds]), truth)


@pytest.mark.parametrize("variance", [np.array([1.6, 0.4]), np.array([2.0, 0.1])])
def test_the_oracles_agree_with_each_other(variance):
    alpha_bar = np.asarray(dp.schedules.cosine(8).alpha_bar(), np.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # K is quadratic in x_0
    at = oracles.gaussian_bound_at(
        np.sqrt(variance) * nodes[:, None], np.zeros(2), variance, alpha_bar
    )
    average = (weights / weights.sum()) @ at
    np.testing.assert_allclose(average, oracles.gaussian_bound(variance, alpha_bar), rtol=1e-9)
    if variance.sum() == 2:  # the paper's condition: K = -H(X_1) - KL(q(x_T), pi)
        entropy = 0.5 * np.log(2 * np.pi * np.e * (alpha_bar[1] * variance + 1 - alpha_bar[1]))
        end = oracles.normal_kl(0.0, alpha_bar[-1] * variance + 1 - alpha_bar[-1], 0.0, 1.0)
        np.testing.assert_allclose(average.sum(), -(entropy + end).sum(), rtol=1e-9)


def test_data_from_the_prior_have_the_bound_of_the_paper_and_never_pass_the_ceiling():
    schedule = dp.schedules.log_snr_linear(12, noise_to_signal=(0.1, 20.0))
    x_0 = np.random.default_rng(0).normal(size=(20_000, 2)) * np.sqrt(VARIANCE)
    bound = dp.elbo(jax.random.key(2), normal_model(schedule, np.zeros(2)), x_0)
    alpha_bar = np.asarray(schedule.alpha_bar(), np.float64)
    exact = oracles.gaussian_bound(VARIANCE, alpha_bar).sum()
    assert_within_standard_errors(bound.value, exact, bound.standard_error)
    ceiling = -np.log(2 * np.pi * np.e * (1 - alpha_bar[1]))  # -H_q(x_1 | x_0), 2 coordinates
    assert exact < ceiling
    assert bound.value < ceiling


def test_the_null_model_of_real_data_has_the_likelihood_of_its_base():
    schedule = dp.schedules.sohl_dickstein(50)
    network = dp.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))  # says zero at first
    model = dp.DiffusionModel(
        dp.GaussianDiffusion(schedule),
        network,
        (2,),
        prediction=dp.predictions.Velocity(dp.predictions.UpperVariance()),
    )
    bound = dp.elbo(jax.random.key(3), model, repeated(X_0, 20_000))
    assert_mean(bound.per_example, scipy.stats.norm.logpdf(X_0).sum())


def test_a_shorter_chain_has_the_bound_of_its_own_levels():
    schedule = dp.schedules.log_snr_linear(40)
    model = dp.respaced(normal_model(schedule), 9)
    bound = dp.elbo(jax.random.key(4), model, repeated(X_0, 4_000))
    alpha_bar = schedule.alpha_bar()[schedule.times(9)]
    assert_mean(bound.per_example, oracles.gaussian_bound_at(X_0, MEAN, VARIANCE, alpha_bar).sum())


@pytest.mark.parametrize("steps", [dp.AllSteps(), dp.SampledSteps()], ids=str)
def test_a_chain_of_one_step_has_an_edge_and_an_end(steps):
    schedule = dp.schedules.log_snr_linear(2).respace(2)
    schedule = dp.schedules.Schedule(schedule.log_snr()[1:2])
    bound = dp.elbo(jax.random.key(5), normal_model(schedule), X_0[None], steps=steps)
    exact = oracles.gaussian_bound_at(X_0, MEAN, VARIANCE, schedule.alpha_bar()).sum()
    np.testing.assert_allclose(bound.per_example, [exact], rtol=1e-5)
    assert np.isnan(bound.standard_error)


# Bits and categories ----------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "categorical-counts-absorbing",
        *slow("categorical-absorbing", "categorical-counts", "categorical-uniform"),
    ],
)
def test_the_bound_of_states_is_that_of_the_enumeration(name):
    schedule = dp.schedules.reciprocal(5)
    process = PROCESSES[name](schedule)
    model = KNOWN[f"listed-{name}"].model(schedule)
    num_data, num_states = process.num_categories or 2, getattr(process, "num_states", 2)
    data, states = (oracles.all_states(n, 3) for n in (num_data, num_states))
    base = np.asarray(oracles.kernel_table(process.base((1, 3)), np.arange(num_states)))[0]
    exact = oracles.discrete_bound(model, np.asarray(base, np.float64), states, data)
    log_prob = oracles.discrete_model_log_prob(model, states, data)
    assert np.all(exact[np.isfinite(exact)] <= log_prob[np.isfinite(exact)] + 1e-6)
    seen = KNOWN[f"listed-{name}"].prior.states[1]
    (index,) = np.flatnonzero((data == seen).all(axis=1))
    bound = dp.elbo(jax.random.key(6), model, repeated(seen, 4_000))
    assert_mean(bound.per_example, exact[index])


@pytest.mark.parametrize("name", ["bernoulli-per-bit", "categorical-uniform", "categorical-counts"])
def test_the_null_model_of_states_has_the_likelihood_of_its_base(name):
    process = PROCESSES[name](dp.schedules.cosine(6))
    num = process.num_categories or 2
    states = oracles.all_states(num, 3)
    base = np.asarray(oracles.kernel_table(process.base((1, 3)), np.arange(num)), np.float64)[0]
    probabilities = np.prod([base[states[:, j], j] for j in range(3)], axis=0)
    states, probabilities = states[probabilities > 0], probabilities[probabilities > 0]
    network = dp.denoisers.Enumerated(process, states, probabilities)
    model = dp.DiffusionModel(process, network, EVENT_SHAPE)
    for index in (1, 6):
        bound = dp.elbo(jax.random.key(index), model, repeated(states[index], 2_000))
        assert_mean(bound.per_example, np.log(probabilities[index]))


# Every loss -----------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_number_with_a_gradient(name):
    key_net, key_data, key_context, key_loss = jax.random.split(jax.random.key(0), 4)
    process = PROCESSES["gaussian"](dp.schedules.cosine(6))
    network = NETWORKS["optional-context"](key_net, EVENT_SHAPE, EVENT_SHAPE, 6)
    model = dp.DiffusionModel(process, network, EVENT_SHAPE, context_shape=(3,))
    x_0, context = (jax.random.normal(key, (5, 3)) for key in (key_data, key_context))
    loss = LOSSES[name](6)
    loss.check(model)
    assert loss.label

    def of_network(network):
        return loss(
            key_loss, eqx.tree_at(lambda model: model.network, model, network), x_0, context
        )

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(of_network))(network)
    assert value.shape == ()
    assert np.isfinite(value)
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradient)]
    assert 0 < max(norms) < np.inf


# What it says ----------------------------------------


def test_units_of_a_bound():
    values, prior, terms = jnp.array([-2.0, -4.0]), jnp.array(-0.5), jnp.array([-2.5, 0.0])
    bound = dp.Estimate(values, jnp.full(2, jnp.nan), prior, terms, num_dimensions=3)
    assert bound.value == -3
    assert bound.standard_error == pytest.approx(1.0)
    assert bound.bits == pytest.approx(-3 / np.log(2))
    assert bound.bits_per_dim == pytest.approx(1 / np.log(2))
    assert repr(bound) == "Estimate(-3.000 ± 1.000 nats, 1.443 bits/dim, n=2)"


# What it refuses ----------------------------------------

GAUSSIAN = normal_model(dp.schedules.cosine(4))
BITS = KNOWN["listed-bernoulli"].model(dp.schedules.reciprocal(4))


@pytest.mark.parametrize(
    ("model", "x_0", "error", "message"),
    [
        (GAUSSIAN, np.zeros(2), ValueError, r"x_0 has shape \(2,\), .* needs shape \(n, 2\)"),
        (GAUSSIAN, np.zeros((4, 3)), ValueError, r"x_0 has shape \(4, 3\), but .* shape \(2,\)"),
        (GAUSSIAN, np.zeros((0, 2)), ValueError, r"x_0 is empty: it has shape \(0, 2\)"),
        (GAUSSIAN, [[np.nan, 1.0]], ValueError, "x_0 has NaN or infinite values: 1 of 2"),
        (GAUSSIAN, [[np.inf, np.nan]], ValueError, "x_0 has NaN or infinite values: 2 of 2"),
        (GAUSSIAN, [["a", "b"]], TypeError, "x_0 has dtype .*; it must hold real numbers"),
        (GAUSSIAN, 1j * np.ones((1, 2)), TypeError, "x_0 has dtype complex128"),
        (
            BITS,
            [[0, 1, 2]],
            ValueError,
            "outside the support of BernoulliDiffusion.*1 of 3 values .2 at .0, 2.",
        ),
        (BITS, [[0, 1, 0.5]], ValueError, "outside the support of BernoulliDiffusion"),
    ],
)
def test_bad_data_are_named(model, x_0, error, message):
    with pytest.raises(error, match=message):
        dp.elbo(jax.random.key(0), model, x_0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (7, "key=7 must be a typed key, such as jax.random.key"),
        (np.int64(7), "key=np.int64.7. must be a typed key"),
        (np.zeros(2), r"key=<array of shape \(2,\)> must be a typed key"),
        (np.zeros(3, np.uint32), "key is not a key"),
        (jax.random.split(jax.random.PRNGKey(0)), r"key has shape \(2,\); it must be one key"),
        (None, "key=None must be a typed key"),
        (jax.random.split(jax.random.key(0)), r"key has shape \(2,\); it must be one key"),
    ],
)
def test_bad_keys_are_named(key, message):
    with pytest.raises(TypeError, match=message):
        check_key(key)


def test_old_keys_are_wrapped():
    typed = check_key(jax.random.PRNGKey(3))
    assert typed.shape == ()
    np.testing.assert_array_equal(jax.random.key_data(typed), jax.random.PRNGKey(3))
    assert check_key(np.asarray(jax.random.PRNGKey(3))) == typed == jax.random.key(3)


def test_contexts_are_checked():
    class Shifted(dp.denoisers.AbstractDenoiser):
        def __call__(self, x_t, t, context):
            return jnp.stack([context, jnp.full_like(context, -50.0)])

    model = dp.DiffusionModel(
        dp.GaussianDiffusion(dp.schedules.cosine(4)), Shifted(), (2,), context_shape=(2,)
    )
    x_0, key = np.zeros((3, 2)), jax.random.key(0)
    for context, message in (
        (None, r"context is missing: .* context_shape=\(2,\), .* shape \(n, 2\)"),
        (np.zeros((2, 2)), r"context has shape \(2, 2\); it needs one context for each datum"),
        (np.full((3, 2), np.nan), "context has NaN or infinite values"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.elbo(key, model, x_0, context=context)
    with pytest.raises(ValueError, match="context was given, but the model has no context_shape"):
        dp.elbo(key, GAUSSIAN, x_0, context=x_0)
    # A context that is the datum leaves certainty: each step costs nothing.
    data = np.array([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])
    np.testing.assert_allclose(dp.elbo(key, model, data, context=data).terms[1:], 0.0, atol=1e-6)
