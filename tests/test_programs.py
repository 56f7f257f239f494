"""Programs that people write, each against its posterior and evidence by quadrature.

Priors are normal in one dimension, so that a grid over x and the latents is the truth; x has the
variance of the chain's own draws, which is near 1.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan

import diffppl as dp

from . import chain_oracles
from .marks import quick_and_slow
from .statistics import assert_within_standard_errors

norm = scipy.stats.norm
SCHEDULE = dp.schedules.log_snr_linear(30, noise_to_signal=(0.02, 30.0))
PROCESS = dp.GaussianDiffusion(SCHEDULE)


def model(size: int = 1, **settings: Any) -> dp.DiffusionModel:
    """A prior that is N(0, 1) in each coordinate."""
    network = dp.denoisers.Gaussian(SCHEDULE, np.zeros(size), np.ones(size))
    return dp.DiffusionModel(PROCESS, network, (size,), **settings)


class Follower(eqx.Module):
    """The denoiser of x ~ N(context, 1)."""

    schedule: dp.schedules.AbstractSchedule

    def __call__(self, x_t, t, context):
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        gain = jnp.sqrt(alpha_bar) / (alpha_bar + noise)
        return context + gain * (x_t - jnp.sqrt(alpha_bar) * context)


M1, M2 = model(), model(2)
FOLLOWER = dp.DiffusionModel(
    PROCESS, Follower(SCHEDULE), (1,), prediction=dp.predictions.Data(), context_shape=(1,)
)
_, VARIANCES = chain_oracles.matched_chain_moments(
    np.zeros(1), np.ones(1), np.exp(-0.5 * np.asarray(SCHEDULE.log_snr()[1:], np.float64))
)
SD = float(np.sqrt(VARIANCES[0]))  # of the draws of the chain


def prior(x):
    """Log-density of the chain's draws."""
    return norm(0, SD).logpdf(x)


def grid(low: float, high: float, num: int = 401) -> np.ndarray:
    """Midpoints of equal cells, so that no boundary of a support is one."""
    edges = np.linspace(low, high, num + 1)
    return (edges[1:] + edges[:-1]) / 2


WIDE = grid(-7, 7)


class Case(NamedTuple):
    """A program with its data, and its log-density on a grid over some of its sites."""

    program: Callable
    data: dict[str, Any]
    grids: dict[str, np.ndarray]
    log_joint: Callable[..., Any]


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__.replace("_", " ")] = make
    return make


# What the prior depends on ------------------------------------------------------------------------


@case
def a_scaling_from_a_latent() -> Case:
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        x = numpyro.sample("x", model(scaling=dp.Scaling(mu, 1.0))())
        numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)

    def log_joint(mu, x):
        return norm(0, 2).logpdf(mu) + prior(x - mu) + norm(x, 0.1).logpdf(3.0)

    return Case(program, {"y": 3.0}, {"mu": WIDE, "x": grid(2, 4)}, log_joint)


@case
def a_network_from_a_latent() -> Case:
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        network = dp.denoisers.Gaussian(SCHEDULE, jnp.zeros(1), jnp.ones(1))
        network = eqx.tree_at(lambda network: network.mean, network, mu[None])
        x = numpyro.sample("x", dp.DiffusionModel(PROCESS, network, (1,))())
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    def log_joint(mu, x):
        return norm(0, 1).logpdf(mu) + prior(x - mu) + norm(x, 0.5).logpdf(2.0)

    return Case(program, {"y": 2.0}, {"mu": WIDE, "x": WIDE}, log_joint)


@case
def a_context_from_a_latent() -> Case:
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        x = numpyro.sample("x", FOLLOWER(mu[None]))
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    def log_joint(mu, x):
        return norm(0, 1).logpdf(mu) + prior(x - mu) + norm(x, 0.5).logpdf(2.0)

    return Case(program, {"y": 2.0}, {"mu": WIDE, "x": WIDE}, log_joint)


def follow(x):
    return prior(x)


@case
def two_models_in_a_chain() -> Case:
    def program(y):
        x1 = numpyro.sample("x1", M1())
        x2 = numpyro.sample("x2", FOLLOWER(x1))
        numpyro.sample("y", dist.Normal(x2[0], 0.5), obs=y)

    def log_joint(x1, x2):
        return prior(x1) + prior(x2 - x1) + norm(x2, 0.5).logpdf(2.0)

    return Case(program, {"y": 2.0}, {"x1": WIDE, "x2": WIDE}, log_joint)


@case
def three_models_in_a_chain_of_which_two_are_seen() -> Case:
    """In an order that is not that of their names."""

    def program(y, z):
        x1 = numpyro.sample("c", M1())
        x2 = numpyro.sample("a", FOLLOWER(x1))
        x3 = numpyro.sample("b", FOLLOWER(x2))
        numpyro.sample("y", dist.Normal(x3[0], 0.5), obs=y)
        numpyro.sample("z", dist.Normal(x1[0], 1.0), obs=z)

    def log_joint(c, a, b):
        seen = norm(b, 0.5).logpdf(2.0) + norm(c, 1.0).logpdf(-1.0)
        return prior(c) + prior(a - c) + prior(b - a) + seen

    grids = {name: grid(-6, 6, 121) for name in "cab"}
    return Case(program, {"y": 2.0, "z": -1.0}, grids, log_joint)


@case
def a_chain_with_a_latent_and_a_count() -> Case:
    def program(y):
        x1 = numpyro.sample("x1", M1())
        x2 = numpyro.sample("x2", FOLLOWER(x1))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Poisson(scale * jnp.exp(x2[0])), obs=y)

    def log_joint(x1, x2, scale):
        rate = scale * np.exp(x2)
        seen = scipy.stats.lognorm(0.5).logpdf(scale) + scipy.stats.poisson(rate).logpmf(6)
        return prior(x1) + prior(x2 - x1) + seen

    grids = {"x1": grid(-6, 6, 121), "x2": grid(-6, 6, 121), "scale": grid(0.05, 8, 161)}
    return Case(program, {"y": jnp.array(6)}, grids, log_joint)


# What the supports of latents depend on -----------------------------------------------------------


@case
def a_support_from_a_latent() -> Case:
    def program(y):
        a = numpyro.sample("a", dist.Uniform(0, 2))
        b = numpyro.sample("b", dist.Uniform(0, a))
        x = numpyro.sample("x", M1())
        numpyro.sample("y", dist.Normal(x[0] + b, 0.3), obs=y)

    def log_joint(a, b, x):
        inside = np.where(b < a, -np.log(2 * a), -np.inf)
        return inside + prior(x) + norm(x + b, 0.3).logpdf(2.5)

    grids = {"a": grid(0, 2, 200), "b": grid(0, 2, 200), "x": grid(-1, 4, 161)}
    return Case(program, {"y": 2.5}, grids, log_joint)


@case
def a_support_from_x() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        b = numpyro.sample("b", dist.Uniform(x[0], x[0] + 1))
        numpyro.sample("y", dist.Normal(b, 0.3), obs=y)

    def log_joint(x, b):
        inside = np.where((x < b) & (b < x + 1), 0.0, -np.inf)
        return inside + prior(x) + norm(b, 0.3).logpdf(2.5)

    return Case(program, {"y": 2.5}, {"x": grid(-1, 5, 1201), "b": grid(0, 5, 1000)}, log_joint)


@case
def a_support_from_an_argument() -> Case:
    def program(y, most):
        x = numpyro.sample("x", M1())
        b = numpyro.sample("b", dist.Uniform(0, most))
        numpyro.sample("y", dist.Normal(x[0] + b, 0.3), obs=y)

    def log_joint(x, b):
        return -np.log(0.7) + prior(x) + norm(x + b, 0.3).logpdf(2.5)

    return Case(program, {"y": 2.5, "most": 0.7}, {"x": WIDE, "b": grid(0, 0.7, 100)}, log_joint)


@case
def a_simplex() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0])))
        numpyro.deterministic("first", p[0])
        numpyro.sample("y", dist.Normal(x[0] * p[0], 0.3), obs=y)

    def log_joint(x, first):
        return prior(x) + scipy.stats.beta(1, 2).logpdf(first) + norm(x * first, 0.3).logpdf(1.0)

    return Case(program, {"y": 1.0}, {"x": WIDE, "first": grid(0, 1)}, log_joint)


# Masks, scales, missing data --------------------------------------------------------------------

SEEN = np.array([1.0, 2.0, 0.5])


@case
def a_mask_that_hides_nothing() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        with handlers.mask(mask=np.ones(3, bool)):
            numpyro.sample("y", dist.Normal(jnp.broadcast_to(x[0], (3,)), 1.5), obs=y)

    def log_joint(x):
        return prior(x) + norm(x, 1.5).logpdf(SEEN[:, None]).sum(0)

    return Case(program, {"y": SEEN}, {"x": WIDE}, log_joint)


MANY = np.random.default_rng(0).normal(0.7, 0.5, 16)
GOOD = np.arange(16) % 3 > 0


def with_gaps(x):
    return prior(x) + norm(x, 0.3).logpdf(MANY[GOOD][:, None]).sum(0)


@case
def a_mask_over_nan() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        noise = dist.Normal(jnp.broadcast_to(x[0], (16,)), 0.3)
        numpyro.sample("y", noise.mask(jnp.asarray(GOOD)).to_event(1), obs=y)

    return Case(program, {"y": np.where(GOOD, MANY, np.nan)}, {"x": grid(-1, 2)}, with_gaps)


@case
def obs_mask_over_nan() -> Case:
    def program(y, good):
        x = numpyro.sample("x", M1())
        with numpyro.plate("n", 16):
            numpyro.sample("y", dist.Normal(x[0], 0.3), obs=y, obs_mask=good)

    data = {"y": np.where(GOOD, MANY, np.nan), "good": GOOD}
    return Case(program, data, {"x": grid(-1, 2)}, with_gaps)


@case
def obs_mask_over_bits() -> Case:
    def program(y, good):
        x = numpyro.sample("x", M1())
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Bernoulli(logits=x[0]), obs=y, obs_mask=good)

    def log_joint(x):
        p = scipy.special.expit(x)
        return prior(x) + 2 * np.log(p)

    data = {"y": np.array([1, 0, 1]), "good": np.array([True, False, True])}
    return Case(program, data, {"x": WIDE}, log_joint)


@case
def vectors_of_which_one_is_masked() -> Case:
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])

    def program(y, good):
        x = numpyro.sample("x", M1())
        with numpyro.plate("n", 3), handlers.mask(mask=good):
            loc = jnp.stack([x[0], -x[0]])
            numpyro.sample("y", dist.MultivariateNormal(loc, covariance), obs=y)

    y = np.array([[1.0, -0.5], [np.nan, np.nan], [0.2, -0.9]])

    def log_joint(x):
        loc = np.stack([x, -x], -1)
        each = [
            scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(row - loc)
            for row in y[::2]
        ]
        return prior(x) + sum(each)

    good = np.array([True, False, True])
    return Case(program, {"y": y, "good": good}, {"x": WIDE}, log_joint)


@case
def scaled_observations() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        with handlers.scale(scale=0.25):
            numpyro.sample("y", dist.Normal(jnp.broadcast_to(x[0], (3,)), 0.5), obs=y)
        with handlers.scale(scale=np.array([2.0, 0.5])):
            numpyro.sample("z", dist.Normal(jnp.broadcast_to(x[0], (2,)), 1.0), obs=y[:2])

    def log_joint(x):
        first = 0.25 * norm(x, 0.5).logpdf(SEEN[:, None]).sum(0)
        last = 2 * norm(x, 1).logpdf(SEEN[0]) + 0.5 * norm(x, 1).logpdf(SEEN[1])
        return prior(x) + first + last

    return Case(program, {"y": SEEN}, {"x": WIDE}, log_joint)


@case
def a_scaled_latent() -> Case:
    def program(y):
        with handlers.scale(scale=0.25):
            u = numpyro.sample("u", dist.Normal(0, 1))
        x = numpyro.sample("x", M1())
        numpyro.sample("y", dist.Normal(u + x[0], 1.0), obs=y)

    def log_joint(u, x):
        return 0.25 * norm.logpdf(u) + prior(x) + norm(u + x, 1).logpdf(3.0)

    return Case(program, {"y": 3.0}, {"u": grid(-12, 15), "x": WIDE}, log_joint)


@case
def a_masked_latent() -> Case:
    def program(y):
        with handlers.mask(mask=False):
            u = numpyro.sample("u", dist.Normal(0, 1))
        x = numpyro.sample("x", M1())
        numpyro.sample("y", dist.Normal(u + x[0], 1.0), obs=y)

    def log_joint(u, x):
        return prior(x) + norm(u + x, 1).logpdf(3.0)

    return Case(program, {"y": 3.0}, {"u": grid(-12, 15), "x": WIDE}, log_joint)


# Distributions without moments --------------------------------------------------------------------


def one_number(noise: Callable, y: float) -> Callable:
    def program(y):
        x = numpyro.sample("x", M1())
        numpyro.sample("y", noise(x[0]), obs=y)

    return program


HEAVY: dict[str, tuple[Callable, Callable, float]] = {
    "half-cauchy": (
        lambda x: dist.HalfCauchy(jnp.exp(x)),
        lambda x: scipy.stats.halfcauchy(scale=np.exp(x)).logpdf(3.0),
        3.0,
    ),
    "inverse-gamma": (
        lambda x: dist.InverseGamma(1.5, jnp.exp(x)),
        lambda x: scipy.stats.invgamma(1.5, scale=np.exp(x)).logpdf(3.0),
        3.0,
    ),
    "pareto": (
        lambda x: dist.Pareto(1.0, 0.5 + jax.nn.softplus(x)),
        lambda x: scipy.stats.pareto(0.5 + np.log1p(np.exp(x))).logpdf(2.0),
        2.0,
    ),
    "levy": (
        lambda x: dist.Levy(x, 0.5),
        lambda x: scipy.stats.levy(x, 0.5).logpdf(1.5),
        1.5,
    ),
    "mixture-of-cauchys": (
        lambda x: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.3, 0.7])), dist.Cauchy(jnp.stack([x, -x]), 0.3)
        ),
        lambda x: np.log(
            0.3 * scipy.stats.cauchy(x, 0.3).pdf(1.5) + 0.7 * scipy.stats.cauchy(-x, 0.3).pdf(1.5)
        ),
        1.5,
    ),
    "truncated-cauchy": (
        lambda x: dist.TruncatedCauchy(x, 0.5, low=0.0),
        lambda x: (
            scipy.stats.cauchy(x, 0.5).logpdf(2.0) - np.log(scipy.stats.cauchy(x, 0.5).sf(0.0))
        ),
        2.0,
    ),
    "student": (
        lambda x: dist.StudentT(1.5, x, 0.4),
        lambda x: scipy.stats.t(1.5, x, 0.4).logpdf(2.0),
        2.0,
    ),
    "log-normal": (
        lambda x: dist.LogNormal(x, 0.8),
        lambda x: scipy.stats.lognorm(0.8, scale=np.exp(x)).logpdf(3.0),
        3.0,
    ),
}


# Idioms -----------------------------------------------------------------------------------------


@case
def a_vector_observed_by_a_scalar() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.3))
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    def log_joint(x, sigma):
        seen = norm(x, sigma).logpdf(SEEN[:, None, None]).sum(0)
        return prior(x) + scipy.stats.lognorm(0.3).logpdf(sigma) + seen

    return Case(program, {"y": SEEN}, {"x": WIDE, "sigma": grid(0.05, 5)}, log_joint)


def plain(x):
    return prior(x) + sum(norm(x, 1.5).logpdf(y) for y in SEEN)


def three_numbers(y):
    x = numpyro.sample("x", M1())
    numpyro.sample("y", dist.Normal(jnp.broadcast_to(x[0], (3,)), 1.5).to_event(1), obs=y)


@case
def data_in_a_list() -> Case:
    return Case(three_numbers, {"y": list(SEEN)}, {"x": WIDE}, plain)


@case
def a_program_that_reads_its_data_in_python() -> Case:
    def program(y):
        if np.nanmax(y) > 1:  # a value, not a shape
            y = y[~np.isnan(y)]
        three_numbers(y)

    return Case(program, {"y": np.append(SEEN, np.nan)}, {"x": WIDE}, plain)


@case
def a_program_with_a_seed_of_its_own() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.3))
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    def log_joint(x, sigma):
        seen = norm(x, sigma).logpdf(2.0)
        return prior(x) + scipy.stats.lognorm(0.3).logpdf(sigma) + seen

    grids = {"x": WIDE, "sigma": grid(0.05, 5)}
    return Case(handlers.seed(program, 0), {"y": 2.0}, grids, log_joint)


@case
def sites_that_nothing_observed_depends_on() -> Case:
    def program(y):
        three_numbers(y)
        future = numpyro.sample("future", dist.Poisson(4.0))
        numpyro.sample("later", dist.Normal(future, 1.0))

    def log_joint(x, later):
        counts = np.arange(30)[:, None, None]
        weights = scipy.stats.poisson(4).pmf(counts)
        return plain(x) + np.log(np.sum(weights * norm(counts, 1).pdf(later), axis=0))

    return Case(program, {"y": SEEN}, {"x": WIDE, "later": grid(-5, 25)}, log_joint)


@case
def draws_by_sample_shape() -> Case:
    def program(y):
        x = numpyro.sample("x", M1(), sample_shape=(3,))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)
        numpyro.deterministic("total", x.sum())

    def log_joint(total):
        return norm(0, np.sqrt(3) * SD).logpdf(total) + norm(total, 0.5).logpdf(2.0)

    return Case(program, {"y": 2.0}, {"total": WIDE}, log_joint)


@case
def latents_and_observations_in_a_scan() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())

        def step(level, y):
            level = numpyro.sample("level", dist.LogNormal(0.5 * jnp.log(level), 0.3))
            numpyro.sample("y", dist.Normal(x[0] + level, 0.4), obs=y)
            return level, None

        last, _ = scan(step, 1.0, y)
        numpyro.deterministic("last", last)

    def log_joint(x, first, last):
        one = scipy.stats.lognorm(0.3).logpdf(first) + norm(x + first, 0.4).logpdf(1.0)
        two = scipy.stats.norm(0.5 * np.log(first), 0.3).logpdf(np.log(last)) - np.log(last)
        return prior(x) + one + two + norm(x + last, 0.4).logpdf(2.0)

    grids = {"x": grid(-4, 4, 161), "first": grid(0.2, 4, 161), "last": grid(0.2, 4, 161)}
    return Case(program, {"y": np.array([1.0, 2.0])}, grids, log_joint)


@case
def observations_in_a_branch() -> Case:
    def program(y):
        x = numpyro.sample("x", M1())

        def near(y):
            numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

        def far(y):
            numpyro.sample("y", dist.Normal(x[0], 2.0), obs=y)

        cond(x[0] > 0, near, far, y)

    def log_joint(x):
        return prior(x) + np.where(x > 0, norm(x, 0.5).logpdf(0.3), norm(x, 2.0).logpdf(0.3))

    return Case(program, {"y": 0.3}, {"x": grid(-7, 7, 4000)}, log_joint)


# The comparison -----------------------------------------------------------------------------------


def truth(each: Case) -> tuple[float, dict[str, float]]:
    """log Z in nats, and means by site."""
    axes = np.meshgrid(*each.grids.values(), indexing="ij")
    log_joint = each.log_joint(**dict(zip(each.grids, axes, strict=True)))
    log_cell = sum(np.log(values[1] - values[0]) for values in each.grids.values())
    log_z = scipy.special.logsumexp(log_joint) + log_cell
    weights = np.exp(log_joint - scipy.special.logsumexp(log_joint))
    means = {name: np.sum(weights * x) for name, x in zip(each.grids, axes, strict=True)}
    return float(log_z), means


def assert_right(each: Case, method=None, num_chains: int = 6) -> dp.Posterior:
    posterior = dp.Posterior(each.program, method, num_chains=num_chains, progress_bar=False)
    posterior.run(jax.random.key(0), **each.data)
    log_z, means = truth(each)
    evidence = posterior.log_evidence
    assert evidence.is_trusted
    assert_within_standard_errors(evidence.value, log_z, evidence.standard_error, num=4.5)
    draws = posterior.get_samples(group_by_chain=True)
    for name, mean in means.items():
        if name in draws:
            chains = np.asarray(draws[name], np.float64).mean(axis=1).reshape(num_chains, -1)[:, 0]
            error = chains.std(ddof=1) / np.sqrt(num_chains)
            assert_within_standard_errors(chains.mean(), mean, error, num=5.0)
    return posterior


# Each is a compilation of its own: one of a kind is always run, the others are slow.
QUICK = {
    "two models in a chain",
    "a mask over nan",
}
QUICK_HEAVY = {"student"}
# The count has a heavy tail, seen from two chains away.
MORE = {"a chain with a latent and a count": dp.TwistedSMC(8_000)}


@pytest.mark.parametrize("name", quick_and_slow(CASES, QUICK))
def test_a_program_is_inferred_right(name: str) -> None:
    assert_right(CASES[name](), MORE.get(name))


def heavy(name: str) -> Case:
    noise, log_density, y = HEAVY[name]
    return Case(one_number(noise, y), {"y": y}, {"x": WIDE}, lambda x: prior(x) + log_density(x))


@pytest.mark.parametrize("name", quick_and_slow(HEAVY.keys() - {"levy"}, QUICK_HEAVY))
def test_an_observation_without_moments(name: str) -> None:
    assert_right(heavy(name), dp.TwistedSMC(1_000))


@pytest.mark.slow
def test_a_twist_that_misses_an_edge_is_not_trusted() -> None:
    """It misses a tenth of the evidence, of which its error has nothing; the default does not."""
    each = heavy("levy")
    posterior = dp.Posterior(each.program, dp.TwistedSMC(1_000), progress_bar=False)
    with pytest.warns(UserWarning, match="evidence may be too low"):
        posterior.run(jax.random.key(0), **each.data)
    assert "excluded" in str(posterior.log_evidence)
    default = dp.Posterior(each.program, progress_bar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "up to .* of the weights were NaN")  # beyond Levy's end
        default.run(jax.random.key(0), **each.data)
    value, error = default.log_evidence
    assert_within_standard_errors(value, truth(each)[0], error, num=4.5)
