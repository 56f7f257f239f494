"""The runner: what it refuses, what it returns, and ArviZ on both of its generations."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp
from diffppl.conditioning import runs

from .hlo import num_compilations

SCHEDULE = dp.schedules.log_snr_linear(20, noise_to_signal=(0.05, 30.0))
MODEL = dp.DiffusionModel(
    dp.GaussianDiffusion(SCHEDULE),
    dp.denoisers.Gaussian(SCHEDULE, jnp.array([1.0, -2.0]), jnp.array([1.0, 0.5])),
    (2,),
    scaling=dp.Scaling(10.0, 3.0),
)
METHOD = dp.TwistedSMC(num_particles=300)


def program(y=None):
    x = numpyro.sample("x", MODEL())
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("total", x.sum())
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


Y = jnp.array([12.0, 5.0])


def make(program, **settings) -> dp.Posterior:
    settings = {"num_chains": 2, "num_samples": 100, "progress_bar": False, **settings}
    return dp.Posterior(program, METHOD, **settings)


@pytest.fixture(scope="module")
def posterior() -> dp.Posterior:
    posterior = make(program)
    posterior.run(jax.random.key(0), y=Y)
    return posterior


# What comes back -----------------------------------------------------------------------------


def test_samples_are_named_shaped_and_in_the_users_units(posterior: dp.Posterior) -> None:
    samples = posterior.get_samples()
    assert {name: x.shape for name, x in samples.items()} == {
        "x": (200, 2),
        "sigma": (200,),
        "total": (200,),
    }
    np.testing.assert_allclose(samples["total"], samples["x"].sum(-1), rtol=1e-5)
    assert float(samples["sigma"].min()) > 0
    # The prior is N(13, 3^2) and N(4, 4.5) in the user's units; sigma by quadrature.
    prior_mean, prior_variance = np.array([13.0, 4.0]), np.array([9.0, 4.5])
    sigma = np.linspace(0, 6, 6_001)[1:, None]
    total = prior_variance + sigma**2
    weight = scipy.stats.norm.pdf(Y, prior_mean, np.sqrt(total)).prod(1)
    weight *= scipy.stats.halfnorm.pdf(sigma[:, 0])
    share = prior_variance / total
    mean = np.average(prior_mean + share * (Y - prior_mean), axis=0, weights=weight)
    second = np.average(
        share * sigma**2 + (prior_mean + share * (Y - prior_mean)) ** 2, axis=0, weights=weight
    )
    error = np.sqrt((second - mean**2) / 100)  # 200 draws, some of them of the same particle
    assert np.all(np.abs(samples["x"].mean(0) - mean) < 4 * error)
    sigma_mean = np.average(sigma[:, 0], weights=weight)
    sigma_error = np.sqrt(np.average((sigma[:, 0] - sigma_mean) ** 2, weights=weight) / 100)
    assert abs(float(samples["sigma"].mean()) - sigma_mean) < 4 * sigma_error
    assert posterior.get_samples(group_by_chain=True)["x"].shape == (2, 100, 2)


def test_the_same_key_gives_the_same_draws(posterior: dp.Posterior) -> None:
    again = make(program)
    again.run(jax.random.key(0), y=Y)
    other = make(program)
    other.run(jax.random.key(1), y=Y)
    np.testing.assert_array_equal(again.get_samples()["x"], posterior.get_samples()["x"])
    assert not np.array_equal(other.get_samples()["x"], posterior.get_samples()["x"])


@pytest.mark.slow
def test_condition_is_as_good_as_obs(posterior: dp.Posterior) -> None:
    again = make(numpyro.handlers.condition(program, {"y": Y}))
    again.run(jax.random.key(0))
    np.testing.assert_allclose(again.get_samples()["x"], posterior.get_samples()["x"], rtol=1e-4)


def test_new_observations_compile_nothing() -> None:
    sizes = set()
    for seed, y in enumerate([Y, Y + 1, Y - 1]):
        again = make(program)
        again.run(jax.random.key(seed), y=y)
        sizes.add(tuple(num_compilations(f) for f in (runs._init, runs._advance, runs._end)))
    assert len(sizes) == 1


@pytest.mark.slow
def test_a_bar_is_shown_and_filled(capsys: pytest.CaptureFixture[str]) -> None:
    shown = make(program, progress_bar=True)
    shown.run(jax.random.key(0), y=Y)
    assert "42/42" in capsys.readouterr().err  # two chains of 20 steps and an end each


def test_summary_names_evidence_and_exactness(
    posterior: dp.Posterior, capsys: pytest.CaptureFixture[str]
) -> None:
    posterior.print_summary()
    printed = capsys.readouterr().out
    for word in ("x[0]", "sigma", "log evidence", "consistent"):
        assert word in printed
    assert "log_evidence=" in repr(posterior)
    assert "not run" in repr(make(program))


# ArviZ ---------------------------------------------------------------------------------------


def test_arviz_groups_and_coordinates(posterior: dp.Posterior) -> None:
    idata = posterior.to_arviz(dims={"x": ["pixel"]}, coords={"pixel": ["left", "right"]})
    assert dict(idata["posterior"]["x"].sizes) == {"chain": 2, "draw": 100, "pixel": 2}
    assert list(idata["posterior"]["pixel"].values) == ["left", "right"]
    np.testing.assert_array_equal(idata["observed_data"]["y"].values, Y)
    assert idata["posterior_predictive"]["y"].shape == (2, 100, 2)
    stats = idata["sample_stats"]
    assert dict(stats["ess"].sizes) == {"chain": 2, "step": 21}
    assert list(stats["step"].values) == list(range(20, -1, -1))
    assert stats["log_weight"].shape == (2, 100)
    assert idata["posterior"].attrs["exactness"] == "consistent"


def test_arviz_functions_work(posterior: dp.Posterior) -> None:
    idata = posterior.to_arviz()
    summary = az.summary(idata)
    assert {"x[0]", "x[1]", "sigma", "total"} <= set(summary.index)
    az.plot_forest(idata, var_names=["x"])


def test_predictions_follow_the_draws(posterior: dp.Posterior) -> None:
    samples, drawn = posterior.get_samples(), posterior.posterior_predictive()["y"]
    scores = (drawn.reshape(-1, 2) - samples["x"]) / samples["sigma"][:, None]
    assert abs(float(scores.mean())) < 4 / np.sqrt(400)
    assert 0.7 < float(scores.std()) < 1.3


def test_arviz_dims_must_exist(posterior: dp.Posterior) -> None:
    with pytest.raises(ValueError, match="dims names .*'z'"):
        posterior.to_arviz(dims={"z": ["a"]})
    with pytest.raises(ValueError, match=r"dims\['x'\].* 2 names"):
        posterior.to_arviz(dims={"x": ["a", "b"]})


# What is refused -----------------------------------------------------------------------------


def no_diffusion(y=None):
    numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal())), obs=y)


def observed_diffusion(y=None):
    numpyro.sample("x", MODEL(), obs=y)


def discrete_latent(y=None):
    k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL()), 1.0 + k).to_event(1), obs=y)


def improper_latent(y=None):
    m = numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL()) + m, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("program", "y", "message"),
    [
        (no_diffusion, 1.0, "no diffusion site"),
        (observed_diffusion, Y, "site 'x' is a diffusion model that is itself observed"),
        (program, None, "no observed site"),
        (discrete_latent, Y, "site 'k' is a discrete latent"),
        (improper_latent, Y, "site 'm' has an improper prior"),
        (program, jnp.array([1.0, jnp.nan]), "site 'y' has 1 value that is NaN"),
    ],
    ids=["no diffusion", "observed", "no observation", "discrete", "improper", "nan"],
)
def test_a_program_that_cannot_be_conditioned(program, y, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(program).run(jax.random.key(0), y=y)


@pytest.mark.usefixtures("as_users_call_it")
def test_bad_settings() -> None:
    with pytest.raises(TypeError, match="program is int"):
        dp.Posterior(3, METHOD)
    with pytest.raises(TypeError, match="method is str"):
        dp.Posterior(program, "smc")
    with pytest.raises(ValueError, match="num_chains=0"):
        make(program, num_chains=0)
    with pytest.raises(ValueError, match="num_samples=400 is more than num_particles=300"):
        make(program, num_samples=400).run(jax.random.key(0), y=Y)
    with pytest.raises(ValueError, match="num_steps=21 is not between 1"):
        dp.Posterior(program, dp.TwistedSMC(50, num_steps=21), num_samples=10).run(
            jax.random.key(0), y=Y
        )
    with pytest.raises(TypeError, match="typed key"):
        make(program).run(0, y=Y)
    with pytest.raises(RuntimeError, match="not been run"):
        make(program).get_samples()
    with pytest.raises(ValueError, match="num_particles=1"):
        dp.TwistedSMC(1)
    with pytest.raises(ValueError, match="twist=ExpectedLikelihood.*site 'x'.*real"):
        dp.Posterior(
            program, dp.TwistedSMC(50, twist=dp.twists.ExpectedLikelihood()), num_samples=10
        ).run(jax.random.key(0), y=Y)


def test_a_collapse_warns_with_figures_and_remedy() -> None:
    def sharp(y=None):
        x = numpyro.sample("x", MODEL())
        numpyro.sample("y", dist.Normal(10 * jnp.sin(3 * x), 1e-4).to_event(1), obs=y)

    with pytest.warns(UserWarning, match=r"effective sample size fell to .* at t = \d+"):
        make(sharp).run(jax.random.key(0), y=jnp.array([3.0, -2.0]))


# Programs of other shapes --------------------------------------------------------------------


@pytest.mark.slow
def test_two_models_in_one_program_run_in_step() -> None:
    """Sources of different chain lengths; only their sum is seen."""
    long = dp.schedules.log_snr_linear(60, noise_to_signal=(0.01, 50.0))
    short = dp.schedules.log_snr_linear(40, noise_to_signal=(0.01, 50.0))

    def prior(schedule, mean, variance):
        network = dp.denoisers.Gaussian(schedule, jnp.array([mean]), jnp.array([variance]))
        return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (1,))

    first, second = prior(long, 0.5, 1.5), prior(short, -1.0, 0.4)

    def mixture(y=None):
        a = numpyro.sample("a", first())
        b = numpyro.sample("b", second())
        numpyro.sample("y", dist.Normal(a + b, 0.5).to_event(1), obs=y)

    # The model's own chain is exact here: E[x_0 | x_t] is linear and its variance is known.
    method = dp.TwistedSMC(1_000, chain=dp.chains.ModelChain())
    posterior = dp.Posterior(mixture, method, num_chains=8, num_samples=1_000, progress_bar=False)
    posterior.run(jax.random.key(0), y=jnp.array([2.0]))
    total, residual = 1.5 + 0.4 + 0.25, 2.0 + 0.5
    for name, truth in {
        "a": 0.5 + 1.5 * residual / total,
        "b": -1 + 0.4 * residual / total,
    }.items():
        means = np.asarray(posterior.get_samples(group_by_chain=True)[name]).mean((1, 2))
        error = means.std(ddof=1) / np.sqrt(8)
        assert abs(means.mean() - truth) < 4.5 * error
    value, error = posterior.log_evidence
    truth = -0.5 * (residual**2 / total + np.log(2 * np.pi * total))
    assert abs(value - truth) < 4 * error


@pytest.mark.slow
def test_a_plate_of_events() -> None:
    def plated(y=None):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", MODEL())
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    posterior = make(plated)
    posterior.run(jax.random.key(0), y=jnp.array([[12.0, 5.0], [15.0, 3.0], [10.0, 8.0]]))
    x = posterior.get_samples()["x"]
    assert x.shape == (200, 3, 2)
    assert float(x[:, 1, 0].mean()) > float(x[:, 0, 0].mean()) > float(x[:, 2, 0].mean())


def test_draws_follow_the_particles_by_default() -> None:
    assert dp.Posterior(program, dp.TwistedSMC(300)).num_samples == 300
    assert dp.Posterior(program, dp.Guidance()).num_samples == 1_000


def test_draws_that_are_lost_are_named() -> None:
    def impossible(y=None):
        x = numpyro.sample("x", MODEL())
        numpyro.sample("y", dist.Normal(x / 0.0, 1.0).to_event(1), obs=y)

    lost = dp.Posterior(impossible, dp.Guidance(), num_chains=1, num_samples=3, progress_bar=False)
    with pytest.warns(UserWarning, match=r"100 % of the numbers at site 'x' are not finite"):
        lost.run(jax.random.key(0), y=Y)
