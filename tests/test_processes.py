"""Forward processes: the kernels of each are held against one another.

Discrete chains are written out as matrices; Gaussian ones are composed by hand from the means and
variances of their transitions.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import diffppl as dp
from diffppl.processes import GaussianEstimate
from diffppl.processes.divergence import categorical_kl

from . import oracles
from .registry import DISCRETE, EVENT_SHAPE, PROCESSES, SCHEDULES, chains
from .statistics import assert_counts

T = 5
(WIDTH,) = EVENT_SHAPE


def make(process, schedule, num_steps=T):
    return PROCESSES[process](SCHEDULES[schedule](num_steps))


def bare(process):
    """With the levels alone, so that all schedules share one compilation."""
    levels = process.schedule.log_snr()[1:]
    return process.with_schedule(dp.schedules.Schedule(levels))


def absorbing(process):
    return isinstance(getattr(process, "base_distribution", None), dp.Absorbing)


# Discrete kernels, by matrices -----------------------------------------------------------------


@eqx.filter_jit
def discrete_kernels(process, states, estimate):
    """Every kernel as tables over states, at t = 1..T; last axis: coordinates."""
    x = jnp.broadcast_to(states[:, None], (states.size, WIDTH))
    data = states[: process.num_categories or 2]

    def at(t):
        def posterior(x_0):
            return process.posterior(x, jnp.full_like(x, x_0), t)

        reverse = process.reverse(x, estimate, t)
        return {
            "transition": oracles.kernel_table(process.transition(x, t), states),
            "marginal": oracles.kernel_table(process.marginal(x, t), states),
            "posterior": jax.vmap(
                lambda x_0: oracles.kernel_table(posterior(x_0), states), out_axes=1
            )(data),
            "reverse": oracles.kernel_table(reverse, states),
            "kl": jax.vmap(lambda x_0: process.kl(posterior(x_0), reverse), out_axes=1)(data),
        }

    tables = jax.vmap(at)(jnp.arange(1, T + 1))
    tables["base"] = oracles.kernel_table(process.base((1, WIDTH)), states)[0]
    tables["edge"] = oracles.kernel_table(process.final_step(x, estimate), states)
    tables["expected_edge"] = process.expected_final_log_prob(x[: data.size])
    tables["beta"] = process.schedule.beta()
    return tables


class Discrete:
    """The package's tables of a discrete process beside the true ones, in double precision."""

    def __init__(self, process, *, certain):
        self.process = process
        self.num_states = getattr(process, "num_states", 2)
        self.num_data = process.num_categories or 2
        # The states of a coordinate; those above are padding, of whatever logits.
        counts = np.broadcast_to(getattr(process, "counts", 2), (WIDTH,))
        self.own = np.arange(self.num_data) < counts[:, None]
        self.probs = np.random.default_rng(1).dirichlet([1.0] * self.num_data, size=WIDTH)
        if certain:
            self.probs = np.broadcast_to(np.eye(self.num_data)[1], self.probs.shape)
        least = 1e-300 if process.num_categories is None else 0.0  # the odds of bits are a quotient
        logits = jnp.log(jnp.maximum(self.probs, least))
        logits = jnp.broadcast_to(logits, (self.num_states, *logits.shape))
        if process.num_categories is None:
            logits = logits[..., 1] - logits[..., 0]
        self.probs = self.probs * self.own
        self.probs = self.probs / self.probs.sum(axis=-1, keepdims=True)
        estimate = process.estimate_from_logits(logits)
        tables = discrete_kernels(bare(process), jnp.arange(self.num_states), estimate)
        self.tables = {name: None if x is None else np.asarray(x) for name, x in tables.items()}
        self.base = self.tables["base"]
        matrices = [oracles.chain_matrices(self.tables["beta"], column) for column in self.base.T]
        self.steps = np.stack([steps for steps, _ in matrices], axis=-1)
        self.marginals = np.stack([marginals for _, marginals in matrices], axis=-1)

    def posteriors(self, t):
        """q(x_{t-1} | x_t, x_0) by Bayes: (x_t, x_0, x_{t-1}, coordinate)."""
        tables = [
            oracles.posterior_table(self.steps[..., j], self.marginals[..., j], t)
            for j in range(WIDTH)
        ]
        return np.stack(tables, axis=-1)[:, : self.num_data]

    def reachable(self, t):
        """Whether x_t can follow x_0, which is one of the coordinate's own: (x_t, x_0, coord)."""
        return (np.moveaxis(self.marginals[t, : self.num_data], 0, 1) > 0) & self.own.T


@functools.cache
def discrete_tables(process, schedule, *, certain=False):
    with jax.enable_x64(True):
        return Discrete(make(process, schedule), certain=certain)


@pytest.fixture(params=chains(DISCRETE), ids="-".join)
def discrete(request):
    return discrete_tables(*request.param)


@pytest.fixture(params=chains(DISCRETE), ids="-".join)
def certain(request):
    return discrete_tables(*request.param, certain=True)


def test_discrete_marginal_is_the_transitions_multiplied(discrete):
    tables = discrete.tables
    np.testing.assert_allclose(discrete.base.sum(axis=0), 1.0, rtol=1e-14)
    np.testing.assert_allclose(tables["transition"], discrete.steps[1:], atol=1e-14)
    np.testing.assert_allclose(tables["marginal"], discrete.marginals[1:], atol=1e-13)


def test_discrete_posterior_is_bayes(discrete):
    for t in range(2, T + 1):
        reachable = discrete.reachable(t)
        np.testing.assert_allclose(
            np.swapaxes(discrete.tables["posterior"][t - 1], 2, 3)[reachable],
            np.swapaxes(discrete.posteriors(t), 2, 3)[reachable],
            rtol=1e-8,
            atol=1e-14,
        )


def assert_reverse_is_averaged_posterior(discrete):
    for t in range(2, T + 1):
        # A state of x_t may rule some x_0 out; the others then share what is left.
        weights = discrete.probs * np.swapaxes(discrete.reachable(t), 1, 2)
        with np.errstate(invalid="ignore"):
            weights = weights / weights.sum(axis=-1, keepdims=True)
        possible = np.isfinite(weights).all(axis=-1)  # (x_t, coordinate)
        assert possible.any(axis=0).all()  # a certain estimate is ruled out by most x_t
        posteriors = np.nan_to_num(discrete.posteriors(t))
        averaged = np.einsum("ijk,ikmj->ijm", weights, posteriors)
        reverse = np.swapaxes(discrete.tables["reverse"][t - 1], 1, 2)
        np.testing.assert_allclose(reverse[possible], averaged[possible], rtol=1e-8, atol=1e-14)


def test_discrete_reverse_is_the_posterior_averaged_over_the_estimate(discrete):
    assert_reverse_is_averaged_posterior(discrete)


def test_discrete_reverse_of_a_certain_estimate_is_the_posterior(certain):
    assert_reverse_is_averaged_posterior(certain)
    for t in range(2, T + 1):
        reachable = certain.reachable(t)[:, 1]  # (x_t, coordinate)
        np.testing.assert_allclose(
            np.swapaxes(certain.tables["reverse"][t - 1], 1, 2)[reachable],
            np.swapaxes(certain.posteriors(t)[:, 1], 1, 2)[reachable],
            rtol=1e-8,
            atol=1e-14,
        )


def test_discrete_divergence_by_enumeration(discrete):
    for t in range(2, T + 1):
        reachable = discrete.reachable(t)
        q, p = discrete.tables["posterior"][t - 1], discrete.tables["reverse"][t - 1]
        truth = scipy.special.rel_entr(q, p[:, None]).sum(axis=2)
        np.testing.assert_allclose(
            discrete.tables["kl"][t - 1][reachable], truth[reachable], rtol=1e-7, atol=1e-14
        )


def test_discrete_kernels_are_stationary_and_in_detailed_balance(discrete):
    for table in discrete.tables["transition"]:
        flow = discrete.base[:, None] * table
        np.testing.assert_allclose(flow.sum(axis=0), discrete.base, atol=1e-14)
        if not absorbing(discrete.process):
            np.testing.assert_allclose(flow, np.swapaxes(flow, 0, 1), atol=1e-14)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_kernels_are_stationary_in_single_precision(name):
    process = make(name, "reciprocal", 1000)
    states = jnp.arange(getattr(process, "num_states", 2))
    x = jnp.broadcast_to(states[:, None], (states.size, WIDTH))
    base = np.asarray(process.base((WIDTH,)).probs, np.float64)
    for t in (1, 2, 500, 1000):
        probs = np.asarray(process.transition(x, t).probs, np.float64)
        if process.num_categories is None:
            pushed = (1 - base) * probs[0] + base * probs[1]
        else:
            pushed = np.einsum("ji,ijk->jk", base, probs)
        np.testing.assert_allclose(pushed, base, atol=1e-7)


def test_discrete_edge_is_the_forward_kernel_turned_round(discrete):
    if absorbing(discrete.process):
        return  # nothing leaves the mask: see test_absorbing_edge_is_the_estimate
    forward = np.swapaxes(discrete.steps[1], 0, 1)  # (x_1, x_0)
    with np.errstate(invalid="ignore", divide="ignore"):
        turned = forward * discrete.base / discrete.base[:, None]
    own = np.broadcast_to(discrete.own.T[:, None], turned.shape)  # of x_1
    np.testing.assert_allclose(discrete.tables["edge"][own], turned[own], atol=1e-14)


def test_discrete_expected_edge_by_enumeration(discrete):
    value = discrete.tables["expected_edge"]
    if absorbing(discrete.process):
        assert value is None
        return
    log_edge = np.log(np.maximum(discrete.tables["edge"], 1e-300))
    expected = np.einsum("ijk,jik->ik", discrete.steps[1], log_edge)
    np.testing.assert_allclose(value[discrete.own.T], expected[discrete.own.T], rtol=1e-9)


def test_absorbing_edge_is_the_estimate():
    discrete = discrete_tables("categorical-absorbing", "reciprocal")
    assert discrete.num_states == 4
    edge = np.moveaxis(discrete.tables["edge"], -1, 0)
    for coordinate, probs in zip(edge, discrete.probs, strict=True):
        np.testing.assert_allclose(coordinate[:3, :3], np.eye(3), atol=1e-14)
        np.testing.assert_allclose(coordinate[3, :3], probs, atol=1e-14)


@pytest.mark.parametrize("name", ["categorical-counts", "categorical-counts-absorbing"])
def test_padding_has_probability_zero_everywhere(name):
    discrete = discrete_tables(name, "reciprocal")
    padding = np.zeros((discrete.num_states, WIDTH), bool)
    padding[: discrete.num_data] = ~discrete.own.T
    assert padding.sum() == 3  # 2, 4 and 3 of 4
    np.testing.assert_array_equal(discrete.base[padding], 0.0)
    own = ~padding
    for kernel in ("transition", "marginal", "reverse"):
        for table in discrete.tables[kernel]:  # (now, next, coordinate)
            now, following, where = np.nonzero(own[:, None] & padding[None])
            np.testing.assert_array_equal(table[now, following, where], 0.0)
    for table in discrete.tables["posterior"]:  # (now, x_0, next, coordinate)
        data = own[None, : discrete.num_data, None] & own[:, None, None] & padding[None, None]
        np.testing.assert_array_equal(table[np.nonzero(data)], 0.0)
    now, following, where = np.nonzero(own[:, None] & padding[None])
    np.testing.assert_array_equal(discrete.tables["edge"][now, following, where], 0.0)


def test_one_number_of_categories_for_all_is_one_for_each(x64):
    schedule, x = dp.schedules.reciprocal(5), jnp.array([[0, 1, 2], [2, 2, 0]])
    for base in (dp.Uniform(), dp.Absorbing()):
        one = dp.CategoricalDiffusion(schedule, 3, base)
        each = dp.CategoricalDiffusion(schedule, np.array([3, 3, 3]), base)
        assert (one.num_categories, one.num_states) == (each.num_categories, each.num_states)
        for t in (2, 5):
            for kernel in ("transition", "marginal"):
                pair = [getattr(process, kernel)(x, t).probs for process in (one, each)]
                np.testing.assert_array_equal(*pair)
            estimate = one.estimate_from_logits(jnp.linspace(-2.0, 1.0, 18).reshape(2, 3, 3))
            pair = [process.reverse(x, estimate, t).probs for process in (one, each)]
            np.testing.assert_array_equal(*pair)


def test_numbers_of_categories_broadcast_against_the_event():
    columns = dp.CategoricalDiffusion(dp.schedules.reciprocal(5), (2, 3))
    x_0 = jnp.array([[[1, 2], [0, 1]], [[0, 0], [1, 1]]])
    assert columns.marginal(x_0, 2).probs.shape == (2, 2, 2, 3)
    assert bool(jnp.all(columns.support(x_0)))
    assert not bool(jnp.any(columns.support(jnp.array([2, 3]))))
    assert columns.base((4, 2)).probs.shape == (4, 2, 3)
    square = dp.CategoricalDiffusion(dp.schedules.reciprocal(5), [[2, 3], [4, 5]])
    np.testing.assert_array_equal(square.counts, [[2, 3], [4, 5]])
    assert hash(square.categories) == hash(((2, 3), (4, 5)))


def test_absorbing_data_never_take_the_mask():
    process = make("categorical-absorbing", "reciprocal")
    assert (process.num_categories, process.num_states) == (3, 4)
    assert not bool(process.support(jnp.array(3)))
    np.testing.assert_array_equal(process.base((2,)).probs, [[0, 0, 0, 1]] * 2)


# Gaussian kernels, by composition --------------------------------------------------------------

X_0 = np.array([-0.3, 1.0, 2.5])
X_T = np.array([0.8, -1.2, 0.1])
ESTIMATE = (np.array([-0.5, 0.4, 1.9]), np.array([0.0, 0.3, 2.0]))
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@eqx.filter_jit
def gaussian_kernels(process):
    """(mean, variance) of every kernel at t = 1..T."""
    x_0, x_t, zeros = jnp.asarray(X_0), jnp.asarray(X_T), jnp.zeros(WIDTH)
    mean, variance = (jnp.asarray(x) for x in ESTIMATE)

    def moments(kernel):
        return jnp.broadcast_to(kernel.mean, (WIDTH,)), jnp.broadcast_to(kernel.variance, (WIDTH,))

    def at(t):
        level = process.schedule.alpha_bar()[t]
        unit = GaussianEstimate(jnp.sqrt(level) * x_t, jnp.full(WIDTH, 1 - level))
        draws = mean + jnp.sqrt(variance) * NODES[:, None]
        return {
            "transition_of_0": moments(process.transition(zeros, t)),
            "transition_of_1": moments(process.transition(zeros + 1, t)),
            "transition": moments(process.transition(x_t, t)),
            "marginal": moments(process.marginal(x_0, t)),
            "posterior": moments(process.posterior(x_t, x_0, t)),
            "reverse": moments(process.reverse(x_t, GaussianEstimate(mean, variance), t)),
            "reverse_certain": moments(process.reverse(x_t, GaussianEstimate(x_0, zeros), t)),
            "reverse_unit": moments(process.reverse(x_t, unit, t)),
            "posterior_of_draws": jax.vmap(lambda x: moments(process.posterior(x_t, x, t)))(draws),
        }

    return jax.vmap(at)(jnp.arange(1, T + 1))


@functools.cache
def gaussian_moments(schedule):
    with jax.enable_x64(True):
        moments = gaussian_kernels(bare(make("gaussian", schedule)))
        return {name: np.asarray(values) for name, values in moments.items()}


@pytest.fixture(params=SCHEDULES)
def gaussian(request):
    return gaussian_moments(request.param)


@pytest.fixture(params=["cosine", "learned"])
def gaussian_process(request, x64):
    return make("gaussian", request.param)


def test_gaussian_marginal_is_the_transitions_composed(gaussian):
    mean, variance = X_0, np.zeros(WIDTH)
    for t in range(T):
        offset, noise = gaussian["transition_of_0"][:, t]
        slope = gaussian["transition_of_1"][0, t] - offset
        mean, variance = offset + slope * mean, slope**2 * variance + noise
        np.testing.assert_allclose(gaussian["marginal"][0, t], mean, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(gaussian["marginal"][1, t], variance, rtol=1e-10)
        np.testing.assert_array_equal(offset, 0.0)
        np.testing.assert_allclose(slope**2 + noise, 1.0, rtol=1e-12)  # keeps N(0, 1)


def test_gaussian_posterior_is_bayes(gaussian):
    for t in range(1, T):
        mean, variance = gaussian["marginal"][:, t - 1]
        slope, noise = gaussian["transition_of_1"][:, t]
        precision = 1 / variance + slope**2 / noise
        bayes = (mean / variance + slope * X_T / noise) / precision
        np.testing.assert_allclose(gaussian["posterior"][1, t], 1 / precision, rtol=1e-10)
        np.testing.assert_allclose(gaussian["posterior"][0, t], bayes, rtol=1e-9, atol=1e-13)


def test_gaussian_reverse_has_the_moments_of_the_averaged_posterior(gaussian):
    for t in range(1, T):
        mean, variance = gaussian["posterior_of_draws"][:, t]
        first, second = WEIGHTS @ mean, WEIGHTS @ (mean**2 + variance)
        np.testing.assert_allclose(gaussian["reverse"][0, t], first, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(gaussian["reverse"][1, t], second - first**2, rtol=1e-8)


def test_gaussian_reverse_of_a_certain_estimate_is_the_posterior(gaussian):
    np.testing.assert_allclose(
        gaussian["reverse_certain"][:, 1:], gaussian["posterior"][:, 1:], rtol=1e-14
    )


def test_gaussian_reverse_of_unit_normal_data_is_the_forward_kernel(gaussian):
    np.testing.assert_allclose(
        gaussian["reverse_unit"][:, 1:], gaussian["transition"][:, 1:], rtol=1e-10, atol=1e-13
    )


def test_gaussian_edge_is_the_forward_kernel_turned_round(gaussian_process):
    process, base = gaussian_process, gaussian_process.base((WIDTH,))
    edge = process.final_step(jnp.asarray(X_T), GaussianEstimate(jnp.zeros(3), jnp.zeros(3)))
    forward = process.transition(jnp.asarray(X_0), 1)
    turned = forward.log_prob(X_T) + base.log_prob(X_0) - base.log_prob(X_T)
    np.testing.assert_allclose(edge.log_prob(X_0), turned, rtol=1e-12)


def test_gaussian_expected_edge_by_quadrature(gaussian_process):
    process, x_0 = gaussian_process, jnp.asarray(X_0)
    forward = process.marginal(x_0, 1)
    x_1 = forward.mean + jnp.sqrt(forward.variance) * NODES[:, None]
    edge = process.final_step(x_1, GaussianEstimate(x_1, x_1))
    truth = WEIGHTS @ np.asarray(edge.log_prob(x_0))
    np.testing.assert_allclose(process.expected_final_log_prob(x_0), truth, rtol=1e-10)


def test_gaussian_divergence_by_quadrature(gaussian_process):
    process = gaussian_process
    q, p = process.marginal(jnp.array([1.3]), 2), process.marginal(jnp.array([-0.4]), 4)
    (m_q, v_q), (m_p, v_p) = ((float(k.mean[0]), float(k.variance[0])) for k in (q, p))

    def integrand(x):
        log_q, log_p = (scipy.stats.norm.logpdf(x, m, v**0.5) for m, v in ((m_q, v_q), (m_p, v_p)))
        return np.exp(log_q) * (log_q - log_p)

    truth, _ = scipy.integrate.quad(integrand, -8, 8, limit=200)
    assert float(process.kl(q, p)[0]) == pytest.approx(truth, rel=1e-8)
    assert float(oracles.normal_kl(m_q, v_q, m_p, v_p)) == pytest.approx(truth, rel=1e-8)
    assert process.kl(q, q)[0] == 0


# All processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_last_step_of_a_chain_that_forgets_everything_is_finite(name):
    process = make(name, "reciprocal")
    assert process.schedule.beta()[T] == 1
    x_0 = jnp.array([0, 1, 0], process.dtype)
    states = process.num_categories
    shape = EVENT_SHAPE if states is None else (*EVENT_SHAPE, states)
    raw = jnp.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)
    x_t = process.base(EVENT_SHAPE).sample(jax.random.key(0)).astype(process.dtype)
    np.testing.assert_array_equal(
        process.marginal(x_0, T).log_prob(x_t), process.base(EVENT_SHAPE).log_prob(x_t)
    )

    @jax.jit
    def divergence(raw):
        if name == "gaussian":
            estimate = GaussianEstimate(raw, jnp.exp(raw))
        else:
            estimate = process.estimate_from_logits(raw)
        q, p = process.posterior(x_t, x_0, T), process.reverse(x_t, estimate, T)
        return jnp.sum(process.kl(q, p))

    value, gradient = jax.value_and_grad(divergence)(raw)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", PROCESSES)
def test_time_may_be_traced_and_batches_broadcast(name):
    process = make(name, "reciprocal")
    x_0 = jnp.array([[0, 1, 1], [1, 0, 1]], process.dtype)

    @jax.jit
    def log_probs(x, t):
        kernels = (process.transition(x, t), process.marginal(x, t), process.posterior(x, x, t))
        return [kernel.log_prob(x) for kernel in kernels]

    eager = process.posterior(x_0, x_0, 3).log_prob(x_0)
    batches = log_probs(x_0, 3)
    np.testing.assert_allclose(batches[2], eager, rtol=1e-5, atol=1e-6)
    for batch, single in zip(batches, log_probs(x_0[1], 3), strict=True):
        assert batch.shape == (2, WIDTH)
        np.testing.assert_allclose(batch[1], single, rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_with_schedule_changes_only_the_schedule(name):
    process = make(name, "reciprocal", 10)
    shorter = process.with_schedule(process.schedule.respace(4))
    assert (process.num_steps, shorter.num_steps) == (10, 4)
    back = shorter.with_schedule(process.schedule)
    assert eqx.tree_equal(back, process)


@pytest.mark.parametrize("name", PROCESSES)
def test_mean_of_an_estimate(name):
    process = make(name, "reciprocal")
    if name == "gaussian":
        mean = jnp.array([0.3, -2.0, 1.0])
        np.testing.assert_array_equal(process.mean(GaussianEstimate(mean, mean**2)), mean)
        with pytest.raises(TypeError, match="GaussianDiffusion has no logits"):
            process.estimate_from_logits(mean)
    else:
        given = np.array([0.25, 0.5, 0.25, 0.9])[: process.num_categories or 3]
        probs = process.mean(process.estimate_from_logits(jnp.log(jnp.asarray(given))))
        truth = [0.2, 1 / 3, 0.2] if process.num_categories is None else [0.25, 0.5, 0.25]
        if process.num_categories == 4:  # of coordinates with 2, 4 and 3 categories
            each = [given[:2], given, given[:3]]
            truth = [np.pad(p / p.sum(), (0, 4 - p.size)) for p in each]
        np.testing.assert_allclose(probs, truth, rtol=1e-6)


# The divergence of discrete kernels --------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3])
def test_tiny_divergences_keep_their_digits_in_single_precision(size):
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(6), size=200)
    q = p * (1 + size * rng.standard_normal(p.shape).clip(-2, 2))
    q /= q.sum(axis=1, keepdims=True)
    p, q = p.astype(np.float32), q.astype(np.float32)
    exact = [x.astype(np.float64) / x.astype(np.float64).sum(1, keepdims=True) for x in (q, p)]
    truth = scipy.special.rel_entr(*exact).sum(axis=1)
    # Rounding of the probabilities themselves costs about eps / size; a plain sum eps / size^2.
    np.testing.assert_allclose(
        categorical_kl(jnp.asarray(q), jnp.asarray(p)), truth, rtol=1e-6 / size
    )


def test_ratios_near_zero_cost_what_they_should_in_single_precision():
    q = np.array([[1 - 1e-9, 1e-9], [1 - 1e-30, 1e-30], [0.4, 0.6]], np.float32)
    p = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], np.float32)
    truth = scipy.special.rel_entr(q.astype(np.float64), p.astype(np.float64)).sum(axis=1)
    value, slope = jax.value_and_grad(lambda p: categorical_kl(jnp.asarray(q), p).sum())(p)
    np.testing.assert_allclose(categorical_kl(jnp.asarray(q), jnp.asarray(p)), truth, rtol=1e-5)
    np.testing.assert_allclose(value, truth.sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, 1 - q / p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [[16.0, 0.0, -5.0], [9.0, 8.9999, -9.0], [30.0, 0.0, -30.0]])
@pytest.mark.parametrize("name", ["bernoulli", "categorical-uniform"])
def test_bounds_are_finite_whatever_the_levels(name, levels):
    process = PROCESSES[name](dp.schedules.Schedule(np.array(levels)))
    number = process.num_categories or 2
    x_0, x_t = jnp.array([0, 1, 1]), jnp.array([1, 1, 0])
    shape = (3,) if process.num_categories is None else (3, number)

    @eqx.filter_jit
    def divergence(process, logits, t):
        estimate = process.estimate_from_logits(logits)
        return process.kl(process.posterior(x_t, x_0, t), process.reverse(x_t, estimate, t))

    for t in (2, 3):
        kl = divergence(process, jnp.zeros(shape), t)
        assert np.all(np.asarray(kl) >= 0)
        with jax.enable_x64(True):
            wide = PROCESSES[name](dp.schedules.Schedule(np.array(levels)))
            truth = divergence(wide, jnp.zeros(shape), t)
        np.testing.assert_allclose(kl, truth, rtol=2e-3, atol=1e-5)


def test_states_of_probability_zero_cost_what_they_should(x64):
    q = jnp.array([[0.0, 0.4, 0.6], [0.0, 0.4, 0.6], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    p = jnp.array([[0.0, 0.5, 0.5], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    truth = scipy.special.rel_entr(np.asarray(q), np.asarray(p)).sum(axis=1)
    assert truth[2] == np.inf
    np.testing.assert_allclose(categorical_kl(q, p), truth, rtol=1e-12)
    finite = np.array([0, 1, 3])
    gradient = jax.grad(lambda p: categorical_kl(q[finite], p).sum())(p[finite])
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("t", [2, 1000, 2000])
def test_bits_of_long_chains_are_told_from_certain_ones_in_single_precision(t):
    # At t = 2 a beat goes missing once in 25 million: less than float32 has next to 1.
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(2000), rate=0.2)
    x_0, x_t = jnp.array([[0, 0, 1, 1]] * 3), jnp.array([[0, 1, 0, 1]] * 3)
    logits = jnp.where(x_0 == 1, 1.0, -1.0) * jnp.array([[14.0], [30.0], [100.0]])
    divergence = process.kl(
        process.posterior(x_t, x_0, t),
        process.reverse(x_t, process.estimate_from_logits(logits), t),
    )
    q, p = bit_kernels(np.asarray(x_t), np.asarray(x_0), np.asarray(logits, np.float64), t)
    truth = (scipy.special.rel_entr(q, p) - q + p).sum(axis=0)
    np.testing.assert_allclose(divergence, truth, rtol=1e-3, atol=1e-13)


def bit_kernels(x_t, x_0, logits, t, num_steps=2000, rate=0.2):
    """P(0) and P(1) of x_{t-1} under q and under p, by Bayes in float64."""
    beta, kept = 1 / (num_steps - t + 1), (num_steps - t + 1) / num_steps
    base = np.array([1 - rate, rate])

    def posterior(x_0):
        likelihood = [(1 - beta) * (x_t == j) + beta * base[x_t] for j in (0, 1)]
        prior = [kept * (x_0 == j) + (1 - kept) * base[j] for j in (0, 1)]
        joint = np.stack(likelihood) * np.stack(prior)
        return joint / joint.sum(axis=0)

    yes, no = scipy.special.expit(logits), scipy.special.expit(-logits)
    p = yes * posterior(np.ones_like(x_0)) + no * posterior(np.zeros_like(x_0))
    return posterior(x_0), p


# What they refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.2, np.nan, np.array([0.5, 1.5])])
def test_rates_lie_between_zero_and_one(rate):
    with pytest.raises(ValueError, match="rate must lie strictly between 0 and 1.*of . values"):
        dp.BernoulliDiffusion(dp.schedules.reciprocal(5), rate=rate)


def test_discrete_processes_cannot_learn_their_schedule():
    schedule = dp.schedules.Learned(5, beta_1=0.01)
    with pytest.raises(ValueError, match="BernoulliDiffusion cannot learn its schedule"):
        dp.BernoulliDiffusion(schedule)
    with pytest.raises(ValueError, match="CategoricalDiffusion cannot learn its schedule"):
        dp.CategoricalDiffusion(schedule, num_categories=3)


def test_one_category_is_refused():
    with pytest.raises(ValueError, match="num_categories=1 must be a whole number, 2 or more"):
        dp.CategoricalDiffusion(dp.schedules.reciprocal(5), num_categories=1)


def test_absorbing_chains_must_end_masked():
    with pytest.raises(ValueError, match="schedule ends with alpha_bar_T = .*reciprocal"):
        dp.CategoricalDiffusion(dp.schedules.cosine(5), num_categories=3, base=dp.Absorbing())


@pytest.mark.parametrize("num_steps", [20, 2_000])
@pytest.mark.parametrize("gap", [25.0, 60.0, 1e4])
def test_a_network_that_is_surely_wrong_still_has_a_gradient(gap: float, num_steps: int):
    """An absorbing chain pays the whole log-probability of what the network ruled out."""
    process = dp.CategoricalDiffusion(dp.schedules.reciprocal(num_steps), 2, dp.Absorbing())
    x_0, masked, t = jnp.array([0]), jnp.array([2]), num_steps // 2

    def loss(logits: jax.Array) -> jax.Array:
        p = process.reverse(masked, process.estimate_from_logits(logits), t)
        return jnp.sum(process.kl(process.posterior(masked, x_0, t), p))

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([[0.0, gap]]))
    share = 1 / t  # of the masked that are revealed in this step
    np.testing.assert_allclose(value, share * min(gap, 30.0), rtol=1e-3)
    np.testing.assert_allclose(slope, [[-share, share]], rtol=1e-3)
    # What is ruled out for good stays so.
    ruled_out = process.estimate_from_logits(jnp.array([[0.0, -jnp.inf]]))
    np.testing.assert_array_equal(process.mean(ruled_out), [[1.0, 0.0]])


@pytest.mark.slow
def test_states_of_no_probability_are_never_drawn():
    """A uniform number in float32 is exactly 0 once in 2^23 draws: here about four times."""
    probs = jnp.broadcast_to(jnp.array([0.0, 0.75, 0.0, 0.25]), (2**25, 4))
    certain = dp.CategoricalDiffusion(dp.schedules.reciprocal(4), 4).marginal(jnp.array(2), 0)
    draw = jax.jit(lambda key, probs: type(certain)(probs).sample(key))
    counts = np.bincount(np.asarray(draw(jax.random.key(0), probs)), minlength=4)
    assert counts[0] == counts[2] == 0
    assert_counts(counts[[1, 3]], [0.75, 0.25])
