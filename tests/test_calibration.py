"""Simulation-based calibration, of methods that are right and wrong in ways that are known."""

import itertools
import re
from typing import ClassVar

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp
from diffppl.calibration import uniformity
from diffppl.calibration.calibrate import _prepare, _simulate
from diffppl.calibration.ranks import mean_copies
from diffppl.calibration.simulation import LARGE, simulator
from diffppl.conditioning import AbstractMethod, Draws, Exactness
from diffppl.conditioning.target import Target

from . import chain_oracles, oracles, statistics
from .lower import lower_model
from .marks import slow

SCHEDULE = dp.schedules.log_snr_linear(8, noise_to_signal=(0.3, 20.0))
MEAN, VARIANCE, SCALE = np.array([1.0, -2.0]), np.array([1.0, 0.3]), 0.7
MODEL = lower_model(SCHEDULE, MEAN, VARIANCE, scaling=dp.Scaling(10.0, 3.0))
NUM_STEPS = 3


def program(scale, y=None):
    x = numpyro.sample("x", MODEL())
    numpyro.sample("y", dist.Normal(x[0] + 0.5 * x[1], scale), obs=y)


def prior(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the chain's own x_0, in model units."""
    schedule = SCHEDULE.respace(num_steps)
    mean, variance = chain_oracles.gaussian_chain_moments(MEAN, VARIANCE, schedule.alpha_bar())
    return mean, np.diag(variance)


class KnownPosterior(AbstractMethod):
    """Draws from a normal posterior of "x" by its closed form, or from a wrong one.

    y ~ N(offset + matrix x, noise), x ~ N(mean, covariance), in model units.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    num_steps: int | None
    mean: jax.Array
    covariance: jax.Array
    matrix: jax.Array
    offset: jax.Array
    noise: jax.Array
    inflation: jax.Array  # of the posterior's variance; 1 is right
    learning: jax.Array  # 1 for the posterior, 0 for the prior
    fatal: jax.Array  # data above it kill its particles, as it says
    copies: int = 1  # of each draw

    def resolve(self, target, num_samples):
        return self

    def num_denoiser_calls(self, target, num_samples):
        return 0

    def prior_sampler(self):
        return dp.samplers.Ancestral()

    def phases(self, target):
        return (0,)

    def init(self, key, target, num_samples):
        return None

    def step(self, key, target, state, phase, i):
        return state

    def end(self, key, target, state, phase, num_samples):
        assert target.num_steps == NUM_STEPS
        nowhere = target.evaluate(target.bound.origin(), jnp.zeros(0))
        y = jnp.reshape(nowhere.observed["y"], -1)
        predicted = self.matrix @ self.covariance @ self.matrix.T + self.noise
        gain = self.learning * jnp.linalg.solve(predicted, self.matrix @ self.covariance).T
        mean = self.mean + gain @ (y - self.offset - self.matrix @ self.mean)
        covariance = self.covariance - gain @ self.matrix @ self.covariance
        root = jnp.linalg.cholesky(covariance * self.inflation)
        num = -(-num_samples // self.copies)
        different = mean + jax.random.normal(key, (num, mean.size)) @ root.T
        x = jnp.repeat(different, self.copies, axis=0)[:num_samples]
        ess = jnp.where(jnp.max(y) > self.fatal, 9.5, 10.5) * jnp.array([1.0, 2.0])
        return known_draws({"x": x}, num_samples, ess=ess)


def known_draws(x_0, num_samples, **step_stats):
    nothing = jnp.zeros(())
    return Draws(
        x_0=x_0,
        latents=jnp.zeros((num_samples, 0)),
        log_evidence=nothing,
        evidence_variance=nothing,
        log_weights=jnp.zeros(0),
        sample_stats={},
        step_stats=step_stats,
    )


def known(
    num_steps=NUM_STEPS, inflation=1.0, learning=1.0, fatal=np.inf, copies=1
) -> KnownPosterior:
    mean, covariance = prior(num_steps)
    arrays = (mean, covariance, 3 * np.array([[1.0, 0.5]]), np.array([15.0]), [[SCALE**2]])
    arrays = (jnp.asarray(x, float) for x in (*arrays, inflation, learning, fatal))
    return KnownPosterior(NUM_STEPS, *arrays, copies)


def calibrate(method, seed=0, **settings) -> dp.Calibration:
    settings = {"num_simulations": 400, "num_samples": 99, "batch_size": 400, **settings}
    return dp.calibrate(
        jax.random.key(seed), program, method, SCALE, observed="y", progress_bar=False, **settings
    )


def prepared(program, method, args):
    key = jax.random.key(0)
    return _prepare(key, program, method, args, {}, ("y",), None, None, num_samples=100)


@pytest.fixture(scope="module")
def right() -> dp.Calibration:
    return calibrate(known())


@pytest.fixture(scope="module")
def narrow() -> dp.Calibration:
    return calibrate(known(inflation=0.5))


# What passes and what does not -------------------------------------------------------------------


def test_a_right_method_passes(right: dp.Calibration):
    assert {name: ranks.shape for name, ranks in right.ranks.items()} == {
        "log_likelihood": (400,),
        "x": (400, 2),
    }
    assert right.pvalue > 0.01
    assert right.num_simulations == 400
    for ranks in right.ranks.values():
        assert ranks.min() >= 0
        assert ranks.max() <= 99
        for column in ranks.reshape(400, -1).T:
            counts = np.bincount(column, minlength=100).reshape(20, 5).sum(1)
            statistics.assert_counts(counts, np.full(20, 0.05))
    for value, error in right.coverage().values():
        truth = np.array([0.5, 0.8, 0.9, 0.95]).reshape(-1, *(1,) * (value.ndim - 1))
        errors = error.reshape(truth.shape)
        statistics.assert_within_standard_errors(value, truth, errors)
    np.testing.assert_allclose(error, np.sqrt([0.25, 0.16, 0.09, 0.0475]) / 20)


@pytest.mark.parametrize("copies", [5, *slow(2, 20)])
def test_copies_of_draws_are_no_fault_of_a_posterior(copies: int):
    assert calibrate(known(copies=copies), seed=copies).pvalue > 0.01
    assert calibrate(known(copies=copies, inflation=0.3), seed=copies).pvalue < 0.01


def test_copies_are_told_by_all_numbers_or_by_their_particle():
    x, bits = jnp.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0], [0.0, 2.0]]), jnp.array([1, 1, 1, 0])
    assert mean_copies({"x": x}, None) == (2 + 1 + 2 + 1) / 4
    assert mean_copies({"x": x, "b": bits}, None) == (2 + 1 + 2 + 1) / 4
    assert mean_copies({"b": bits}, None) == 1
    assert mean_copies({"b": bits}, jnp.array([7, 7, 2, 3])) == (2 + 2 + 1 + 1) / 4


def test_a_narrow_posterior_fails_and_its_coverage_says_how(narrow: dp.Calibration):
    """With half the variance the central interval of probability p holds what p' does,
    z(p') = z(p) / sqrt(2): 80% becomes 63.5%."""
    assert narrow.pvalue < 0.001
    probs = np.array([0.5, 0.8, 0.9])
    truth = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf((1 + probs) / 2) / np.sqrt(2)) - 1
    value, _ = narrow.coverage(probs)["x"]
    error = np.sqrt(truth * (1 - truth) / 400)
    statistics.assert_within_standard_errors(value, truth[:, None], error[:, None])


def test_a_method_that_ignores_the_data_is_caught_by_the_likelihood_alone():
    result = calibrate(known(learning=0.0))
    found = result.pvalues()
    assert found["x"].min() > 0.01
    assert found["log_likelihood"] < 0.001


def test_the_prior_is_that_of_the_chain_that_the_method_reads():
    assert calibrate(known(num_steps=8)).pvalue < 0.001


def test_the_prior_is_that_of_the_chain_that_the_method_chooses():
    """A chain with covariance-matched steps is not the model's own: its prior is another."""
    ancestral, matched = dp.samplers.Ancestral(), dp.samplers.CovarianceMatched()
    for method, program_, args, expected in [
        (known(), program, (SCALE,), (NUM_STEPS, ancestral)),
        (dp.TwistedSMC(100, num_steps=5), program, (SCALE,), (5, matched)),
        (dp.TwistedSMC(100, chain=dp.chains.ModelChain()), program, (SCALE,), (8, ancestral)),
        (dp.TwistedSMC(100), bits, (), (NUM_STEPS, ancestral)),
    ]:
        found = prepared(program_, method, args)
        steps = {
            model.num_steps for model in Target(found.bound, found.method.num_steps).models.values()
        }
        assert (steps.pop(), found.method.prior_sampler()) == expected


@pytest.mark.slow
def test_without_a_method_one_is_chosen_as_for_a_posterior():
    for program_, args in ((program, (SCALE,)), (bits, ())):
        chosen = prepared(program_, None, args).method
        posterior = dp.Posterior(program_, num_chains=1, num_samples=100, progress_bar=False)
        posterior.run(jax.random.key(0), *args, y=1.0)
        assert chosen == posterior.method


def test_everything_is_drawn_from_the_prior():
    """x from the sampler's chain of as many steps as asked, and y given x."""

    def draws(sampler) -> dict[str, np.ndarray]:
        draw = simulator(program, (SCALE,), {}, sampler, NUM_STEPS)
        return jax.tree.map(np.asarray, jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)))

    found, wider = draws(dp.samplers.Ancestral()), draws(dp.samplers.CovarianceMatched())
    mean, covariance = prior(NUM_STEPS)
    statistics.assert_moments(found["x"], 10 + 3 * mean, 9 * covariance)
    assert wider["x"][:, 0].std() > 1.2 * found["x"][:, 0].std()
    residual = found["y"] - found["x"] @ [1.0, 0.5]
    statistics.assert_moments(residual[:, None], [0.0], [[SCALE**2]])


def test_new_numbers_compile_nothing(right: dp.Calibration):
    again = calibrate(known())
    before = _simulate._cached._cache_size()
    for name, ranks in again.ranks.items():
        np.testing.assert_array_equal(ranks, right.ranks[name])
    other = calibrate(known(inflation=1.1), seed=1)
    assert not np.array_equal(other.ranks["x"], right.ranks["x"])
    assert _simulate._cached._cache_size() == before


# Discrete sites --------------------------------------------------------------------------------

PROCESS = dp.BernoulliDiffusion(dp.schedules.reciprocal(NUM_STEPS), rate=0.2)
STATES = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
BITS = dp.DiffusionModel(
    PROCESS, dp.denoisers.Enumerated(PROCESS, STATES, np.array([0.4, 0.3, 0.2, 0.1])), (3,)
)
ALL_STATES = oracles.all_states(2, 3)


def bits(y=None):
    x = numpyro.sample("x", BITS())
    numpyro.sample("y", dist.Normal(x @ jnp.array([1.0, 2.0, -1.0]), 1.0), obs=y)


class Enumerated(AbstractMethod):
    """Draws from the posterior over all states, whose prior probabilities are given."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    num_steps: int | None
    log_prior: jax.Array

    def resolve(self, target, num_samples):
        return self

    def num_denoiser_calls(self, target, num_samples):
        return 0

    def prior_sampler(self):
        return dp.samplers.Ancestral()

    def phases(self, target):
        return (0,)

    def init(self, key, target, num_samples):
        return None

    def step(self, key, target, state, phase, i):
        return state

    def end(self, key, target, state, phase, num_samples):
        states = jnp.asarray(ALL_STATES, jnp.int32)
        log_r = jax.vmap(lambda x: target.log_likelihood({"x": x}, jnp.zeros(0)))(states)
        drawn = jax.random.categorical(key, self.log_prior + log_r, shape=(num_samples,))
        return known_draws({"x": states[drawn]}, num_samples)


@pytest.mark.slow
def test_ties_of_a_discrete_site_are_broken_at_random():
    log_prior = oracles.discrete_model_log_prob(BITS, ALL_STATES, ALL_STATES)
    settings = {"num_simulations": 400, "num_samples": 60, "batch_size": 400}
    for log_p, passes in [(log_prior, True), (np.full(8, -np.log(8)), False)]:
        method = Enumerated(None, jnp.asarray(log_p, float))
        result = dp.calibrate(
            jax.random.key(0), bits, method, observed=["y"], progress_bar=False, **settings
        )
        assert result.ranks["x"].shape == (400, 3)
        assert (result.pvalue > 0.01) if passes else (result.pvalue < 0.001)


# A real method, and everything that a program may have -------------------------------------------


@pytest.mark.slow
def test_twisted_smc_with_other_latents(capsys: pytest.CaptureFixture[str]):
    def full(n, y=None):
        x = numpyro.sample("x", MODEL())
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.3))
        total = numpyro.deterministic("total", x.sum())
        with numpyro.plate("n", n):
            numpyro.sample("y", dist.Normal(total, sigma), obs=y)

    with pytest.warns(UserWarning, match="particles collapsed"):  # with few of them, in few steps
        result = dp.calibrate(
            jax.random.key(0),
            full,
            dp.TwistedSMC(200, num_steps=NUM_STEPS),
            3,
            observed="y",
            num_simulations=200,
            num_samples=50,
            batch_size=20,
            quantities=lambda sites: {"product": sites["x"][0] * sites["sigma"]},
        )
    assert "200/200" in capsys.readouterr().err
    shapes = {name: ranks.shape[1:] for name, ranks in result.ranks.items()}
    assert shapes == {
        "x": (2,),
        "sigma": (),
        "total": (),
        "product": (),
        "log_likelihood": (),
    }
    assert result.pvalue > 0.01
    result.print_summary()
    printed = capsys.readouterr().out
    for word in ("x (2)", "sigma", "p-value", "95%", "standard error", "TwistedSMC"):
        assert word in printed
    assert re.search(r"200 simulations of 50 draws, \d+ of them collapsed", repr(result))


@pytest.mark.slow
def test_a_large_site_is_looked_at_along_directions():
    size = 40
    variance = np.linspace(0.2, 1.5, size)
    model = lower_model(SCHEDULE, np.ones(size), variance)

    def large(y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(x[:20].sum(), 1.0), obs=y)

    schedule = SCHEDULE.respace(NUM_STEPS)
    moments = chain_oracles.gaussian_chain_moments(np.ones(size), variance, schedule.alpha_bar())
    matrix = np.repeat([1.0, 0.0], 20)[None]
    arrays = (moments[0], np.diag(moments[1]), matrix, np.zeros(1), np.eye(1))
    for inflation, passes in [(1.0, True), (0.5, False)]:
        method = KnownPosterior(
            NUM_STEPS, *(jnp.asarray(x, float) for x in (*arrays, inflation, 1.0, np.inf))
        )
        result = dp.calibrate(
            jax.random.key(0),
            large,
            method,
            observed="y",
            num_simulations=300,
            num_samples=60,
            batch_size=300,
            progress_bar=False,
        )
        assert result.ranks.keys() == {"log_likelihood", "x_directions"}
        assert result.ranks["x_directions"].shape == (300, LARGE)
        assert (result.pvalue > 0.01) if passes else (result.pvalue < 0.01)


# The test of uniformity --------------------------------------------------------------------------


def test_pvalues_are_exact():
    """Against all 4^5 equally probable columns of five ranks in {0, .., 3}."""
    ranks = np.array(list(itertools.product(range(4), repeat=5))).T
    found = uniformity.pvalues(ranks, 3)
    values = np.unique(np.round(found, 9))
    assert values.size > 5
    shares = [(found <= value + 1e-9).mean() for value in values]
    np.testing.assert_allclose(shares, values, atol=1e-9)


def test_pvalues_are_uniform_if_ranks_are():
    ranks = np.random.default_rng(1).integers(0, 21, size=(150, 4_000))
    found = uniformity.pvalues(ranks, 20)
    for level in (0.02, 0.1, 0.5):
        error = np.sqrt(level * (1 - level) / 4_000)
        statistics.assert_within_standard_errors((found <= level).mean(), level, error)


def test_a_wrong_quantity_among_thousands_is_found():
    rng = np.random.default_rng(7)
    ranks = rng.integers(0, 101, size=(300, 3_000))
    assert dp.Calibration({"x": ranks}, 100, "none").pvalue > 0.01
    ranks[:, 1_234] = rng.binomial(100, 0.5, size=300)
    assert dp.Calibration({"x": ranks}, 100, "none").pvalue < 1e-6


def test_the_band_is_the_test():
    """Ranks stay within the band just when their p-value is not below what the band leaves out."""
    ranks = np.random.default_rng(2).binomial(20, 0.5, size=(60, 300))
    ranks = np.concatenate([ranks, np.random.default_rng(3).integers(0, 21, size=(60, 4_000))], 1)
    position, lower, upper = uniformity.band(60, 20, 0.9)
    line = uniformity.ecdf_difference(ranks, 20)
    np.testing.assert_allclose(position, np.arange(1, 21) / 21)
    inside = np.all((line > lower - 1e-9) & (line < upper + 1e-9), axis=-1)
    np.testing.assert_array_equal(inside, uniformity.pvalues(ranks, 20) > 0.1)
    error = np.sqrt(0.09 / 4_000)
    statistics.assert_within_standard_errors(inside[300:].mean(), 0.9, error)
    assert inside[:300].mean() < 0.01


def test_many_draws_are_looked_at_in_a_hundred_places():
    ranks = np.random.default_rng(4).integers(0, 1_001, size=(50, 3))
    assert uniformity.ecdf_difference(ranks, 1_000).shape == (3, 100)
    one = uniformity.band(50, 1, 0.9)
    np.testing.assert_allclose(one.position, [0.5])


def test_coverage_of_few_draws_counts_edges_in_part():
    """Two draws make three ranks; the central half holds the middle one and no more of the rest."""
    result = dp.Calibration({"x": np.array([0, 1, 2])}, 2, "none")
    np.testing.assert_allclose(result.coverage([0.5])["x"].value, [0.5])
    middle = dp.Calibration({"x": np.array([1, 1])}, 2, "none")
    np.testing.assert_allclose(middle.coverage([0.2, 0.5])["x"].value, [0.6, 1.0])


# ArviZ -----------------------------------------------------------------------------------------


def test_arviz(right: dp.Calibration, narrow: dp.Calibration):
    for result, passes in [(right, True), (narrow, False)]:
        idata = result.to_arviz()
        values = idata["prior_sbc"]["x"]
        assert dict(values.sizes) == {"chain": 1, "draw": 400, "x_dim_0": 2}
        np.testing.assert_array_equal(np.floor(values.values[0] * 100), result.ranks["x"])
        p = scipy.stats.kstest(values.values[0, :, 0], "uniform").pvalue
        assert (p > 0.01) == passes
        if hasattr(az, "plot_ecdf_pit"):
            az.plot_ecdf_pit(idata)
        else:
            flat = values.values[0, :, 0]
            uniform, points = scipy.stats.uniform(0, 1).cdf, np.linspace(0, 1, 50)
            az.plot_ecdf(flat, eval_points=points, cdf=uniform, difference=True)


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call_it")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"observed": "z"}, ValueError, r"observed names 'z', .* sites are \['x', 'y'\]"),
        ({"observed": "x"}, ValueError, "observed names 'x', which is a diffusion model"),
        ({"observed": ()}, ValueError, "observed is empty"),
        ({"y": 1.0}, ValueError, "site 'y' is observed already"),
        ({"num_samples": 0}, ValueError, "num_samples=0"),
        ({"num_simulations": 0}, ValueError, "num_simulations=0"),
        ({"num_simulations": 2.5}, ValueError, "num_simulations=2.5"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"program": 3}, TypeError, "program is int"),
        ({"method": "smc"}, TypeError, "method is str"),
        ({"method": dp.TwistedSMC(50)}, ValueError, "num_samples=99 is more than num_particles"),
        ({"key": 0}, TypeError, "typed key"),
        ({"quantities": 3}, TypeError, "quantities is int"),
        ({"sampler": "ddim"}, TypeError, "sampler='ddim' must be an AbstractSampler, such as"),
        ({"quantities": lambda sites: sites["x"]}, TypeError, "quantities returned"),
        ({"quantities": lambda sites: {"x": 1.0}}, ValueError, r"quantities returned \['x'\]"),
    ],
)
def test_bad_input(settings, error, message: str):
    settings = {
        "key": jax.random.key(0),
        "program": program,
        "method": known(),
        "observed": "y",
        "num_samples": 99,
        **settings,
    }
    key, program_, method = (settings.pop(name) for name in ("key", "program", "method"))
    with pytest.raises(error, match=message):
        dp.calibrate(key, program_, method, SCALE, progress_bar=False, **settings)


def test_a_program_that_cannot_be_simulated():
    def weighted(scale, y=None):
        program(scale, y)
        numpyro.factor("bonus", 1.0)

    def no_diffusion(scale, y=None):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), scale), obs=y)

    for refused, message in [
        (weighted, "site 'bonus' is observed already, or a numpyro.factor"),
        (no_diffusion, "no diffusion site"),
    ]:
        with pytest.raises(ValueError, match=message):
            dp.calibrate(jax.random.key(0), refused, known(), SCALE, observed="y")


def test_probabilities_must_be_probabilities(right: dp.Calibration):
    with pytest.raises(ValueError, match=r"probs=\(0.5, 1\)"):
        right.coverage((0.5, 1))
    with pytest.raises(ValueError, match="prob=0.0"):
        right.band(0.0)


def test_collapsed_simulations_are_counted():
    with pytest.warns(UserWarning, match=r"in (\d+) of 400 simulations the particles collapsed"):
        result = calibrate(known(fatal=18.0))
    mean, covariance = prior(NUM_STEPS)
    matrix = 3 * np.array([1.0, 0.5])
    y = scipy.stats.norm(15 + matrix @ mean, np.sqrt(matrix @ covariance @ matrix + SCALE**2))
    share = y.sf(18)
    assert abs(result.num_collapsed / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400)
    assert f"{result.num_collapsed} of them collapsed" in repr(result)
    assert result.pvalue > 0.01


def test_a_method_that_breaks_is_reported():
    with pytest.warns(UserWarning, match="in 400 of 400 simulations some quantity was NaN"):
        calibrate(known(inflation=-1.0))
