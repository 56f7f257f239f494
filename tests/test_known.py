"""Known answers against conditional formulae, quadrature and enumeration, in double precision."""

import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.extend.core import jaxprs_in_params

import diffppl as dp

from . import oracles

T = 6
TIMES = range(1, T + 1)


@pytest.fixture
def schedule(x64):
    return dp.schedules.log_snr_linear(T, noise_to_signal=(0.1, 10.0))


def levels(schedule):
    """alpha_bar_t and 1 - alpha_bar_t."""
    return np.asarray(schedule.alpha_bar(), np.float64), np.asarray(
        schedule.one_minus_alpha_bar(), np.float64
    )


def answers(network, x, t):
    """E[x_0 | x_t] and Var[x_0 | x_t] of a batch."""
    raw = _batched(network, jnp.asarray(x), jnp.int32(t))
    noise = levels(network.schedule)[1][t]
    return np.asarray(raw[:, 0]), noise * np.exp(np.asarray(raw[:, 1]))


@eqx.filter_jit
def _batched(network, x, t):
    return jax.vmap(lambda x: network(x, t, None))(x)


# One normal ------------------------------------------------------------------------------------

MATRIX = np.array([[1.1, 0.4, -0.3], [0.4, 0.5, 0.2], [-0.3, 0.2, 0.9]])
SINGULAR = np.outer([1.0, -2.0, 0.5], [1.0, -2.0, 0.5])


@pytest.mark.parametrize(
    "covariance",
    [0.7, np.array([0.3, 0.0, 2.0]), MATRIX, SINGULAR],
    ids=["number", "diagonal", "matrix", "singular"],
)
def test_gaussian_is_the_conditional_normal(covariance, x64):
    mean = np.array([0.5, -1.0, 2.0])
    full = np.diag(np.broadcast_to(covariance, 3)) if np.ndim(covariance) < 2 else covariance
    schedule = dp.schedules.log_snr_linear(T)
    network = dp.denoisers.Gaussian(schedule, mean, covariance)
    x = np.random.default_rng(0).normal(size=(5, 3))
    abar, noise = levels(schedule)
    for t in TIMES:
        posteriors = [
            oracles.linear_gaussian_posterior(
                mean, full, y, np.sqrt(abar[t]) * np.eye(3), noise[t] * np.eye(3)
            )
            for y in x
        ]
        means, variances = answers(network, x, t)
        np.testing.assert_allclose(means, [m for m, _, _ in posteriors], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            variances, [np.diag(c) for _, c, _ in posteriors], rtol=1e-9, atol=1e-9
        )


def test_a_covariance_is_over_the_flattened_event(schedule):
    matrix = np.cov(np.random.default_rng(1).normal(size=(4, 9)))
    mean = np.arange(4.0)
    flat = dp.denoisers.Gaussian(schedule, mean, matrix)
    square = dp.denoisers.Gaussian(schedule, mean.reshape(2, 2), matrix)
    x = jnp.array([0.3, -1.0, 2.0, 0.5])
    np.testing.assert_allclose(
        square(x.reshape(2, 2), 3, None), flat(x, 3, None).reshape(2, 2, 2), rtol=1e-12
    )


# Mixtures --------------------------------------------------------------------------------------

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.5, 0.5], [0.4, -0.8], [1.6, 1.1]])


def full_covariances(covariances):
    covariances = np.asarray(covariances)
    if covariances.shape[:1] == (1,):
        covariances = np.repeat(covariances, 3, axis=0)
    if covariances.ndim < 2:
        return np.broadcast_to(covariances, 3)[:, None, None] * np.eye(2)
    return covariances[:, :, None] * np.eye(2) if covariances.ndim == 2 else covariances


FULL = np.array([[[0.3, 0.2], [0.2, 0.4]], [[0.1, 0.0], [0.0, 0.6]], [[0.5, -0.4], [-0.4, 0.5]]])
FORMS = {
    "shared": 0.15,
    "isotropic": np.array([0.05, 0.4, 0.15]),
    "diagonal": np.array([[0.1, 0.3], [0.5, 0.2], [0.2, 0.05]]),
    "matrices": FULL,
    "one-diagonal": np.array([[0.1, 0.3]]),
    "one-matrix": FULL[2:],
    "points": 0.0,
    "points-and-widths": np.array([0.0, 0.4, 0.0]),
}


@pytest.mark.parametrize("form", FORMS)
def test_mixture_is_bayes(form, schedule):
    network = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, FORMS[form])
    x = np.random.default_rng(2).normal(size=(20, 2)) * 1.5
    abar, noise = levels(schedule)
    for t in TIMES:
        means, variances = answers(network, x, t)
        for i, y in enumerate(x):
            posterior = oracles.mixture_posterior(
                WEIGHTS,
                MEANS,
                full_covariances(FORMS[form]),
                y,
                np.sqrt(abar[t]) * np.eye(2),
                noise[t] * np.eye(2),
            )
            mean, covariance = oracles.Mixture(*posterior[:3]).moments()
            np.testing.assert_allclose(means[i], mean, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(variances[i], np.diag(covariance), rtol=1e-9, atol=1e-9)


def test_mixture_in_one_dimension_is_a_quadrature(schedule):
    weights, locs, variances = [0.7, 0.3], [[-1.0], [1.5]], [0.09, 0.25]
    network = dp.denoisers.GaussianMixture(schedule, weights, locs, variances)
    grid = np.linspace(-5, 5, 20_001)
    prior = sum(
        w * scipy.stats.norm.pdf(grid, m[0], np.sqrt(v))
        for w, m, v in zip(weights, locs, variances, strict=True)
    )
    abar, noise = levels(schedule)
    x = np.linspace(-2, 2, 9)
    for t in TIMES:
        means, variances_t = answers(network, x[:, None], t)
        joint = prior * scipy.stats.norm.pdf(x[:, None], np.sqrt(abar[t]) * grid, np.sqrt(noise[t]))
        joint /= joint.sum(axis=1, keepdims=True)
        mean = joint @ grid
        np.testing.assert_allclose(means[:, 0], mean, rtol=1e-7, atol=1e-7)
        truth = np.sum(joint * (grid - mean[:, None]) ** 2, axis=1)
        np.testing.assert_allclose(variances_t[:, 0], truth, rtol=1e-7)


@pytest.mark.parametrize("form", ["isotropic", "points", "matrices", "one-matrix"])
def test_the_derivative_is_the_variance(form, schedule):
    """dE[x_0]/dx_t = sqrt(alpha_bar) Cov[x_0 | x_t] / (1 - alpha_bar), forward and back."""
    network = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, FORMS[form])

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @partial(jax.vmap, in_axes=(0, None))
    def derivatives(x, t):
        def mean(x):
            return network(x, t, None)[0]

        return jax.jacfwd(mean)(x), jax.jacrev(mean)(x), network(x, t, None)[1]

    times = np.array([1, 3, 6])
    x = np.random.default_rng(3).normal(size=(4, 2))
    forward, back, log_ratio = map(np.asarray, derivatives(x, times))
    abar = levels(schedule)[0][times][:, None, None]
    diagonal = np.diagonal(forward, axis1=2, axis2=3)
    np.testing.assert_allclose(diagonal, np.sqrt(abar) * np.exp(log_ratio), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(back, forward, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(np.swapaxes(forward, 2, 3), forward, rtol=1e-7, atol=1e-12)


def pairs_on_a_grid(size):
    """25 pairs of close components, 3 apart, with norms up to 450."""
    rng = np.random.default_rng(4)
    corners = itertools.product(range(-2, 3), repeat=2)
    means = np.array([np.resize([8.0 * i, 8.0 * j], size) for i, j in corners])
    means = np.concatenate([means, means + rng.normal(size=means.shape) * 3 / np.sqrt(size)])
    weights = rng.normal(size=50) ** 2
    return weights / weights.sum(), means


@pytest.mark.parametrize("variances", [1.0, np.linspace(0.98, 1.02, 50)], ids=["shared", "own"])
def test_float32_serves_in_800_dimensions(variances):
    size = 800
    weights, means = pairs_on_a_grid(size)
    schedule = dp.schedules.log_snr_linear(8, noise_to_signal=(0.3, 100.0))
    network = dp.denoisers.GaussianMixture(schedule, weights, means, variances)
    abar, noise = levels(schedule)
    rng, undecided = np.random.default_rng(5), 0
    widths = np.broadcast_to(variances, 50)
    call = jax.jit(jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)))
    for t in range(1, 9):
        which = rng.choice(50, p=weights, size=40)
        x = (
            np.sqrt(abar[t])
            * (means + np.sqrt(widths)[:, None] * rng.normal(size=means.shape))[which]
        )
        x += np.sqrt(noise[t]) * rng.normal(size=(40, size))
        x = x.astype(np.float32).astype(np.float64)
        spread = abar[t] * widths + noise[t]
        squares = np.sum((x[:, None] - np.sqrt(abar[t]) * means) ** 2, axis=2)
        logits = np.log(weights) - 0.5 * squares / spread - 0.5 * size * np.log(spread)
        probs = scipy.special.softmax(logits, axis=1)
        undecided += np.sum(probs.max(axis=1) < 0.9)
        gain = np.sqrt(abar[t]) * widths / spread
        each = gain[:, None] * x[:, None] + (noise[t] / spread)[:, None] * means
        mean = np.einsum("nk,nkj->nj", probs, each)
        within = probs @ (noise[t] * widths / spread)
        between = np.einsum("nk,nkj->nj", probs, (each - mean[:, None]) ** 2)
        raw = np.asarray(call(jnp.asarray(x, jnp.float32), jnp.int32(t)))
        np.testing.assert_allclose(raw[:, 0], mean, atol=5e-5)  # squares alone: 1e-3
        truth = np.log((within[:, None] + between) / noise[t])
        np.testing.assert_allclose(raw[:, 1], truth, atol=2e-4)
    assert undecided > 20


def test_float32_serves_with_one_covariance_in_300_dimensions():
    size, rng = 300, np.random.default_rng(7)
    weights, means = pairs_on_a_grid(size)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    eigenvalues = 10.0 / (1 + np.arange(size))
    covariance = (vectors * eigenvalues) @ vectors.T
    schedule = dp.schedules.log_snr_linear(8, noise_to_signal=(0.3, 100.0))
    network = dp.denoisers.GaussianMixture(schedule, weights, means, covariance[None])
    abar, noise = levels(schedule)
    call = jax.jit(jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)))
    undecided = 0
    for t in range(1, 9):
        a, spread = np.sqrt(abar[t]), abar[t] * eigenvalues + noise[t]
        x = rng.normal(size=(40, size)) * np.sqrt(spread) @ vectors.T
        x += a * means[rng.choice(50, p=weights, size=40)]
        x = x.astype(np.float32).astype(np.float64)
        residual = (x[:, None] - a * means) @ vectors
        logits = np.log(weights) - 0.5 * np.sum(residual**2 / spread, axis=2)
        probs = scipy.special.softmax(logits, axis=1)
        undecided += np.sum(probs.max(axis=1) < 0.9)
        each = means + (a * eigenvalues / spread * residual) @ vectors.T
        mean = np.einsum("nk,nkj->nj", probs, each)
        variance = vectors**2 @ (noise[t] * eigenvalues / spread)
        variance = variance + np.einsum("nk,nkj->nj", probs, (each - mean[:, None]) ** 2)
        raw = np.asarray(call(jnp.asarray(x, jnp.float32), jnp.int32(t)))
        np.testing.assert_allclose(raw[:, 0], mean, atol=6e-5)
        np.testing.assert_allclose(raw[:, 1], np.log(variance / noise[t]), atol=4e-4)
    assert undecided > 20


def sizes(jaxpr):
    """The sizes of all values in a jaxpr."""
    for equation in jaxpr.eqns:
        yield from (value.aval.size for value in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_isotropic_components_are_matrix_multiplications(schedule):
    num, components, size = 50, 10, 40
    rng = np.random.default_rng(6)
    network = dp.denoisers.GaussianMixture(
        schedule, np.full(components, 0.1), rng.normal(size=(components, size)), 0.1
    )
    batched = jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None))
    jaxpr = jax.make_jaxpr(batched)(jnp.zeros((num, size)), jnp.int32(2))
    assert max(sizes(jaxpr.jaxpr)) < num * components * size / 2


def test_components_without_weight_do_not_count(schedule):
    x = jnp.array([0.2, -0.4])
    call = eqx.filter_jit(lambda network: network(x, 2, None))
    for form in ("isotropic", "matrices"):
        covariances = FORMS[form]
        some = dp.denoisers.GaussianMixture(schedule, [0.4, 0.6], MEANS[:2], covariances[:2])
        more = dp.denoisers.GaussianMixture(schedule, [0.4, 0.6, 0.0], MEANS, covariances)
        np.testing.assert_allclose(call(more), call(some), rtol=1e-12)


def test_pure_noise_leaves_the_prior(x64):
    schedule = dp.schedules.reciprocal(4)  # alpha_bar_T = 0
    x = jnp.array([3.0, -2.0])
    normal = dp.denoisers.Gaussian(schedule, MEANS[0], FULL[0])
    call = eqx.filter_jit(lambda network: network(x, 4, None))
    mean, log_variance = call(normal)
    np.testing.assert_allclose(mean, MEANS[0], rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_variance), np.diag(FULL[0]), rtol=1e-12)
    for form, covariances in FORMS.items():
        mixture = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, covariances)
        truth = oracles.Mixture(WEIGHTS, MEANS, full_covariances(covariances)).moments()
        mean, log_variance = call(mixture)
        np.testing.assert_allclose(mean, truth[0], rtol=1e-12, err_msg=form)
        np.testing.assert_allclose(np.exp(log_variance), np.diag(truth[1]), rtol=1e-12)


def test_a_model_takes_the_answer_as_it_is_meant(schedule):
    network = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, 0.0)
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,))
    x = jnp.array([[0.5, -0.2], [3.0, 3.0]])
    raw = jax.jit(jax.vmap(lambda x: network(x, 2, None)))(x)
    estimate = eqx.filter_jit(lambda model, t: model.estimate(x, t))(model, 2)
    assert np.all(np.isfinite(raw))  # also where the variance is 0
    np.testing.assert_allclose(estimate.mean, raw[:, 0], rtol=1e-6)
    truth = schedule.one_minus_alpha_bar()[2] * jnp.exp(raw[:, 1])
    np.testing.assert_allclose(estimate.variance, truth, rtol=1e-6)
    # A chain re-read at fewer levels asks the same questions.
    kept = schedule.times(3)
    np.testing.assert_allclose(
        dp.respaced(model, 3).denoise(x, 2), model.denoise(x, int(kept[2])), rtol=1e-6
    )


# Listed states -----------------------------------------------------------------------------------

BITS = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
CATEGORIES = np.array([[1, 0, 2], [2, 1, 1], [1, 2, 0], [0, 0, 1]])
PROBABILITIES = np.array([0.4, 0.3, 0.2, 0.1])


def listed(kind):
    """A process, its states, and the base probabilities of each coordinate."""
    schedule = dp.schedules.reciprocal(T)
    if kind == "bits":
        rates = np.array([0.1, 0.6, 0.3])
        return dp.BernoulliDiffusion(schedule, rates), BITS, np.stack([1 - rates, rates], axis=1)
    if kind == "uniform":
        process = dp.CategoricalDiffusion(schedule, num_categories=3)
        return process, CATEGORIES, np.full((3, 3), 1 / 3)
    process = dp.CategoricalDiffusion(schedule, num_categories=3, base=dp.Absorbing())
    return process, CATEGORIES, np.tile([0.0, 0.0, 0.0, 1.0], (3, 1))


@pytest.mark.parametrize("kind", ["bits", "uniform", "absorbing"])
def test_enumeration_is_bayes(kind, schedule):
    process, states, base = listed(kind)
    network = dp.denoisers.Enumerated(process, states, PROBABILITIES)
    beta = np.asarray(process.schedule.beta(), np.float64)
    kernels = [oracles.chain_matrices(beta, row)[1] for row in base]
    every = oracles.all_states(base.shape[1], 3)
    call = jax.jit(jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)))
    for t in TIMES:
        # P(x_t, state), for every x_t
        joint = PROBABILITIES * np.prod(
            [kernels[j][t][states[:, j]][:, every[:, j]].T for j in range(3)], axis=0
        )
        possible = joint.sum(axis=1) > 0
        posterior = joint[possible] / joint[possible].sum(axis=1, keepdims=True)
        logits = np.asarray(call(jnp.asarray(every), jnp.int32(t)))
        assert np.all(np.isfinite(logits))
        assert possible.sum() > 3 or kind == "absorbing"
        if kind == "bits":
            given = scipy.special.expit(logits)[possible]
            truth = posterior @ states
        else:
            given = scipy.special.softmax(logits, axis=-1)[possible]
            truth = np.einsum("ns,sjk->njk", posterior, np.eye(3)[states])
        np.testing.assert_allclose(given, truth, rtol=1e-9, atol=1e-12)


def test_enumerated_states_may_repeat_and_have_any_shape(x64):
    process = dp.BernoulliDiffusion(dp.schedules.cosine(T), rate=0.2)
    square = np.array([[[1, 0], [0, 0]], [[0, 1], [1, 1]]])
    network = dp.denoisers.Enumerated(process, square, [0.3, 0.7])
    repeated = dp.denoisers.Enumerated(
        process, np.concatenate([square, square]), [0.1, 0.7, 0.2, 0.0]
    )
    x = jnp.array([[1, 1], [0, 1]])
    logits = network(x, 4, None)
    assert logits.shape == (2, 2)
    np.testing.assert_allclose(repeated(x, 4, None), logits, rtol=1e-12)


def test_what_is_certain_stays_finite():
    process = dp.BernoulliDiffusion(dp.schedules.cosine(T), rate=0.2)
    network = dp.denoisers.Enumerated(process, [[1, 0, 1], [1, 1, 0]], [0.5, 0.5])
    first, *others = np.asarray(network(jnp.array([0, 0, 1]), 3, None))
    assert first == 30.0
    assert np.all(np.abs(others) < 30.0)


# Bad input ---------------------------------------------------------------------------------------


def test_bad_gaussians_are_named(schedule):
    make = dp.denoisers.Gaussian
    with pytest.raises(TypeError, match="schedule"):
        make(dp.GaussianDiffusion(schedule), np.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"mean must be finite.*nan at .1."):
        make(schedule, [0.0, np.nan], 1.0)
    with pytest.raises(ValueError, match=r"covariance has shape \(3,\).*shape \(2, 2\)"):
        make(schedule, np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="covariance is not symmetric"):
        make(schedule, np.zeros(2), [[1.0, 0.5], [0.1, 1.0]])
    with pytest.raises(ValueError, match="covariance is not positive semidefinite"):
        make(schedule, np.zeros(2), [[1.0, 2.0], [2.0, 1.0]])


def test_bad_mixtures_are_named(schedule):
    make = dp.denoisers.GaussianMixture
    with pytest.raises(TypeError, match="schedule"):
        make(dp.GaussianDiffusion(schedule), WEIGHTS, MEANS, 1.0)
    with pytest.raises(ValueError, match=r"weights has shape \(2,\); it needs shape \(3,\)"):
        make(schedule, WEIGHTS[:2], MEANS, 1.0)
    with pytest.raises(ValueError, match=r"weights must be non-negative and sum to 1.*is 2"):
        make(schedule, 2 * WEIGHTS, MEANS, 1.0)
    with pytest.raises(ValueError, match=r"weights must be non-negative.*minimum -0.5"):
        make(schedule, [-0.5, 1.0, 0.5], MEANS, 1.0)
    with pytest.raises(ValueError, match=r"covariances has a negative variance"):
        make(schedule, WEIGHTS, MEANS, -1.0)
    with pytest.raises(ValueError, match=r"covariances has shape \(2, 2\)"):
        make(schedule, WEIGHTS, MEANS, np.eye(2))
    with pytest.raises(ValueError, match=r"means has shape \(0, 2\)"):
        make(schedule, [], np.zeros((0, 2)), 1.0)


def test_bad_enumerations_are_named(schedule):
    make = dp.denoisers.Enumerated
    process = listed("uniform")[0]
    with pytest.raises(TypeError, match="process=<GaussianDiffusion>.*denoisers.GaussianMixture"):
        make(dp.GaussianDiffusion(schedule), BITS, PROBABILITIES)
    with pytest.raises(
        ValueError, match="states has values outside the support of CategoricalDiffusion.*.3 at"
    ):
        make(process, CATEGORIES + np.array([0, 0, 1]), PROBABILITIES)
    with pytest.raises(ValueError, match="states has values outside the support.*.1.25 at"):
        make(process, CATEGORIES * 1.25, PROBABILITIES)
    with pytest.raises(ValueError, match=r"probabilities has shape \(3,\)"):
        make(process, CATEGORIES, PROBABILITIES[:3])
    with pytest.raises(ValueError, match="states has shape"):
        make(process, np.zeros((0, 3), int), [])
