"""Observations without noise, many observations, and observed distributions of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp

from . import chain_oracles, oracles
from .marks import slow
from .statistics import assert_within_standard_errors

MEAN, VARIANCE = np.array([0.5, -0.3, 0.1]), np.array([1.4, 0.3, 0.8])
SCALING = dp.Scaling(3.0, 2.0)
SCHEDULE = dp.schedules.log_snr_linear(40, noise_to_signal=(0.01, 50.0))
MODEL = dp.DiffusionModel(
    dp.GaussianDiffusion(SCHEDULE),
    dp.denoisers.Gaussian(SCHEDULE, MEAN, VARIANCE),
    (3,),
    scaling=SCALING,
)
USER_MEAN, USER_VARIANCE = 3 + 2 * MEAN, 4 * VARIANCE
SEEN, SUM, NOISE = 4.3, 6.0, 0.7


def draw(program, method=None, *, num_chains: int = 8, **data) -> dp.Posterior:
    method = dp.TwistedSMC(1_000) if method is None else method
    settings = {"num_chains": num_chains, "num_samples": 1_000, "progress_bar": False}
    posterior = dp.Posterior(program, method, **settings)
    posterior.run(jax.random.key(0), **data)
    return posterior


def known_entry(seen=None, total=None):
    x = numpyro.sample("x", MODEL())
    numpyro.sample("seen", dist.Delta(x[1]), obs=seen)
    numpyro.sample("total", dist.Normal(x[0] + x[1], NOISE), obs=total)


CHAINS = {"model": dp.chains.ModelChain(), "matched": dp.chains.CovarianceMatched()}
MATCHED = chain_oracles.matched_chain_moments(MEAN, VARIANCE, np.geomspace(0.01, 50.0, 40))
PRIORS = {"model": (USER_MEAN, USER_VARIANCE), "matched": (3 + 2 * MATCHED[0], 4 * MATCHED[1])}


@pytest.mark.parametrize("chain", ["matched", *slow("model")])
def test_a_known_entry_is_honoured_to_the_bit_and_counted(chain: str) -> None:
    method = dp.TwistedSMC(1_000, chain=CHAINS[chain])
    posterior = draw(known_entry, method, seen=jnp.array(SEEN), total=jnp.array(SUM))
    prior_mean, prior_variance = PRIORS[chain]
    x = np.asarray(posterior.get_samples(group_by_chain=True)["x"])
    assert np.all(x[..., 1] == np.float32(SEEN))
    spread = prior_variance[0] + NOISE**2
    residual = SUM - SEEN - prior_mean[0]
    means = x[..., 0].mean(1)
    error = means.std(ddof=1) / np.sqrt(len(means))
    truth = prior_mean[0] + prior_variance[0] / spread * residual
    assert_within_standard_errors(means.mean(), truth, error, num=4.5)
    log_evidence = scipy.stats.norm(prior_mean[1], np.sqrt(prior_variance[1])).logpdf(SEEN)
    log_evidence += scipy.stats.norm(0, np.sqrt(spread)).logpdf(residual)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, log_evidence, error, num=4.0)


@pytest.mark.slow
def test_a_mask_may_choose_the_known_entries_and_change_without_compiling() -> None:
    def masked(mask, seen=None):
        x = numpyro.sample("x", MODEL())
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("seen", dist.Delta(x), obs=seen)

    seen = jnp.array([4.0, 2.0, 3.5])
    for mask in ([True, False, True], [False, True, False]):
        method = dp.TwistedSMC(500, chain=dp.chains.ModelChain())
        posterior = dp.Posterior(masked, method, num_chains=2, num_samples=500, progress_bar=False)
        posterior.run(jax.random.key(1), jnp.array(mask), seen=seen)
        x = np.asarray(posterior.get_samples()["x"])
        chosen = np.array(mask)
        assert np.all(x[:, chosen] == np.asarray(seen)[chosen])
        assert np.all(x[:, ~chosen].std(0) > 0.5)
        truth = scipy.stats.norm(USER_MEAN, np.sqrt(USER_VARIANCE)).logpdf(seen)[chosen].sum()
        value, error = posterior.log_evidence
        assert_within_standard_errors(value, truth, error + 1e-4)  # known to rounding


@pytest.mark.slow
def test_sites_keep_their_models_whatever_their_names() -> None:
    """Site "b" comes before site "a", and each keeps its own model and its own known entry."""

    def prior(mean: float) -> dp.DiffusionModel:
        network = dp.denoisers.Gaussian(SCHEDULE, [mean, 0.0], [0.5, 0.7])
        return dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,))

    first, second = prior(-2.0), prior(1.5)

    def program(y=None, seen=None):
        b = numpyro.sample("b", first())
        a = numpyro.sample("a", second())
        numpyro.sample("seen_b", dist.Delta(b[1]), obs=seen[0])
        numpyro.sample("seen_a", dist.Delta(a[1]), obs=seen[1])
        numpyro.sample("y", dist.Normal(a[0] + b[0], 0.5), obs=y)

    method = dp.TwistedSMC(1_000, chain=dp.chains.ModelChain())
    posterior = draw(program, method, y=jnp.array(1.0), seen=jnp.array([0.25, -0.5]))
    samples = posterior.get_samples(group_by_chain=True)
    assert np.all(np.asarray(samples["b"][..., 1]) == 0.25)
    assert np.all(np.asarray(samples["a"][..., 1]) == -0.5)
    for name, mean in (("b", -2.0), ("a", 1.5)):
        means = np.asarray(samples[name][..., 0]).mean(1)
        error = means.std(ddof=1) / np.sqrt(len(means))
        assert_within_standard_errors(means.mean(), mean + 0.5 * 1.5 / 1.25, error, num=4.5)


@pytest.mark.slow
def test_known_bits_are_honoured() -> None:
    states = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(200), rate=0.5)
    network = dp.denoisers.Enumerated(process, states, weights)
    model = dp.DiffusionModel(process, network, (3,))

    def program(seen=None):
        x = numpyro.sample("x", model())
        numpyro.sample("seen", dist.Delta(x[jnp.array([0, 2])], event_dim=1), obs=seen)

    posterior = draw(program, seen=jnp.array([1, 0]))
    x = np.asarray(posterior.get_samples(group_by_chain=True)["x"])
    assert np.all(x[..., 0] == 1)
    assert np.all(x[..., 2] == 0)
    every = oracles.all_states(2, 3)
    prior = np.exp(oracles.discrete_model_log_prob(model, every, every))
    agree = (every[:, 0] == 1) & (every[:, 2] == 0)
    truth = prior[agree & (every[:, 1] == 1)].sum() / prior[agree].sum()
    rate = (x[..., 1] == 1).mean(1)
    error = rate.std(ddof=1) / np.sqrt(len(rate))
    assert_within_standard_errors(rate.mean(), truth, error, num=4.5)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, np.log(prior[agree].sum()), error, num=4.5)


def test_a_delta_of_anything_else_is_refused() -> None:
    def program(seen=None):
        x = numpyro.sample("x", MODEL())
        numpyro.sample("seen", dist.Delta(x[0] + x[1]), obs=seen)

    with pytest.raises(ValueError, match=r"'seen'.*Normal"):
        draw(program, seen=jnp.array(1.0))


@pytest.mark.slow
def test_many_observations_are_solved_by_conjugate_gradients() -> None:
    """Forty numbers about three: the posterior is still the closed form's."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 3))
    y = matrix @ np.array([4.0, 2.0, 3.5]) + 2.0 * rng.normal(size=40)

    def program(y=None):
        x = numpyro.sample("x", MODEL())
        numpyro.sample("y", dist.Normal(matrix @ x, 2.0).to_event(1), obs=y)

    chain = chain_oracles.gaussian_chain_moments(
        MEAN, VARIANCE, np.asarray(SCHEDULE.alpha_bar()), lower=False
    )
    prior_mean, variance = 3 + 2 * chain[0], 4 * chain[1]
    precision = np.diag(1 / variance) + matrix.T @ matrix / 4
    mean = np.linalg.solve(precision, prior_mean / variance + matrix.T @ y / 4)
    total = matrix @ np.diag(variance) @ matrix.T + 4 * np.eye(40)
    truth = scipy.stats.multivariate_normal(matrix @ prior_mean, total).logpdf(y)
    for covariance in (dp.twists.Isotropic(), dp.twists.Tweedie()):
        twist = dp.twists.MomentMatching(covariance)
        posterior = draw(program, dp.TwistedSMC(1_000, twist=twist), y=jnp.asarray(y))
        means = np.asarray(posterior.get_samples(group_by_chain=True)["x"]).mean(1)
        error = means.std(0, ddof=1) / np.sqrt(len(means))
        assert_within_standard_errors(means.mean(0), mean, error, num=4.5)
        value, error = posterior.log_evidence
        assert_within_standard_errors(value, truth, error, num=4.5)


GRID = np.linspace(-10, 18, 7_001)
PRIOR = scipy.stats.norm(USER_MEAN[0], np.sqrt(USER_VARIANCE[0])).pdf(GRID)


def tail(u):
    return scipy.stats.norm.logsf(u)


OBSERVED = {
    "truncated": (
        lambda x: dist.TruncatedNormal(x, 1.0, low=2.0),
        2.5,
        scipy.stats.norm(GRID, 1.0).logpdf(2.5) - tail(2.0 - GRID),
    ),
    "censored": (
        lambda x: dist.RightCensoredDistribution(dist.Normal(x, 1.0), censored=jnp.array(1)),
        5.0,
        tail(5.0 - GRID),
    ),
    "categorical": (
        lambda x: dist.Categorical(logits=jnp.stack([0.0 * x, x - 4, 4 - x])),
        1,
        (GRID - 4) - np.logaddexp(0, np.logaddexp(GRID - 4, 4 - GRID)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVED)
def test_observed_distributions_of_other_kinds(name: str) -> None:
    make, y, log_likelihood = OBSERVED[name]

    def program(y=None):
        x = numpyro.sample("x", MODEL())
        numpyro.sample("y", make(x[0]), obs=y)

    # Where a site has no moments the weights have heavy tails.
    method = dp.TwistedSMC(4_000, chain=dp.chains.ModelChain())
    posterior = draw(program, method, y=jnp.array(y))
    joint = PRIOR * np.exp(log_likelihood)
    total = np.trapezoid(joint, GRID)
    means = np.asarray(posterior.get_samples(group_by_chain=True)["x"][..., 0]).mean(1)
    error = means.std(ddof=1) / np.sqrt(len(means))
    truth = np.trapezoid(joint * GRID, GRID) / total
    assert_within_standard_errors(means.mean(), truth, error, num=4.5)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, np.log(total), error, num=4.5)
