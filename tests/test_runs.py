"""How a `Posterior` runs: values are fresh, nothing compiles twice, interrupts lose little."""

import functools
import traceback
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers

import diffppl as dp
from diffppl.arviz import pareto_k
from diffppl.conditioning import runs
from diffppl.conditioning.evidence import pooled_evidence, pooled_indices
from diffppl.conditioning.method import Draws
from diffppl.conditioning.traced import Traced

from .hlo import num_compilations
from .marks import quick_and_slow

SCHEDULE = dp.schedules.log_snr_linear(8, noise_to_signal=(0.05, 30.0))


def model(mean: float = 0.0) -> dp.DiffusionModel:
    network = dp.denoisers.Gaussian(SCHEDULE, np.full(1, mean), np.ones(1))
    return dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (1,))


METHOD = dp.TwistedSMC(
    100, twist=dp.twists.PointEstimate()
)  # compiles in no time, and may collapse
few_particles = pytest.mark.filterwarnings("ignore:the particles collapsed")


def run(program, *args, method=METHOD, **kwargs) -> dp.Posterior:
    posterior = dp.Posterior(program, method, num_chains=2, num_samples=100, progress_bar=False)
    posterior.run(jax.random.key(0), *args, **kwargs)
    return posterior


def mean_of(posterior) -> float:
    return float(posterior.get_samples()["x"].mean())


# Values are fresh ---------------------------------------------------------------------------------


class Globals:
    y: Any = 1.0
    scale: Any = 1.0
    model: Any = model()

    def method(self) -> None:
        x = numpyro.sample("x", self.model())
        numpyro.sample("y", dist.Normal(x[0], self.scale), obs=self.y)


HELD = Globals()


def reads_globals():
    HELD.method()


@jax.jit
def shifted(x):
    return x + jnp.asarray(HELD.y) - 1.0


def reads_in_a_jit():
    x = numpyro.sample("x", HELD.model())
    numpyro.sample("y", dist.Normal(jax.jit(lambda x: x + jnp.asarray(HELD.y))(x[0]), 1.0), obs=0.0)


PROGRAMS = {
    "function": lambda: reads_globals,
    "bound method": lambda: HELD.method,
    "partial": lambda: functools.partial(lambda held: held.method(), HELD),
    "handler": lambda: handlers.scope(reads_globals, "", divider=""),
    "inner jit": lambda: reads_in_a_jit,
}
CHANGES = {
    "float": ("y", -2.0),
    "array": ("y", jnp.asarray(-2.0)),
    "numpy": ("y", np.float32(-2.0)),
    "model": ("model", model(-4.0)),
}


@pytest.fixture
def held():
    before = dict(y=1.0, scale=1.0, model=model())
    for name, value in before.items():
        setattr(HELD, name, value)
    return HELD


@few_particles
@pytest.mark.parametrize("change", quick_and_slow(CHANGES, ("float", "model")))
@pytest.mark.parametrize("program", quick_and_slow(PROGRAMS, PROGRAMS.keys() - {"inner jit"}))
def test_a_changed_global_changes_the_answer(held, program: str, change: str) -> None:
    """In a new posterior, and in the next run of the same one."""
    if program == "inner jit" and change == "model":
        pytest.skip("the model is read outside")
    posterior = run(PROGRAMS[program]())
    before = mean_of(posterior)
    setattr(held, *CHANGES[change])
    fresh = mean_of(run(PROGRAMS[program]()))
    assert abs(fresh - before) > 0.2
    posterior.run(jax.random.key(0))
    np.testing.assert_allclose(mean_of(posterior), fresh, atol=1e-5)


def test_checks_are_fresh_too(held) -> None:
    posterior = run(reads_globals)
    held.y = np.nan
    with pytest.raises(ValueError, match="site 'y' has 1 value that is NaN"):
        posterior.run(jax.random.key(0))


def test_what_is_reported_belongs_to_the_run(held) -> None:
    posterior = run(reads_globals)
    density, data = posterior.log_likelihood()["y"], posterior.observed_data()["y"]
    held.y = 5.0
    np.testing.assert_array_equal(posterior.log_likelihood()["y"], density)
    np.testing.assert_array_equal(posterior.observed_data()["y"], data)
    with pytest.raises(RuntimeError, match="changed since run"):
        posterior.prior()


# Nothing compiles twice ---------------------------------------------------------------------------


def compiled() -> tuple[int, ...]:
    return tuple(num_compilations(f) for f in (runs._init, runs._advance, runs._end))


def with_arguments(y, scale):
    x = numpyro.sample("x", HELD.model())
    numpyro.sample("y", dist.Normal(x[0], scale), obs=y)


@few_particles
def test_new_values_compile_nothing(held) -> None:
    run(with_arguments, 0.3, jnp.asarray(0.5))
    before = compiled()
    for y, scale in ((0.4, 0.7), (jnp.asarray(-1.0), 0.2), (np.float32(2.0), np.asarray(0.1))):
        run(with_arguments, y, scale)
    held.model = model(2.0)  # other arrays of the same shapes
    run(with_arguments, 0.3, 0.5)
    run(lambda *args: with_arguments(*args), 0.3, 0.5)  # another function that computes the same
    assert compiled() == before


@pytest.mark.slow
def test_the_program_is_executed_a_few_times_and_directly() -> None:
    calls = []

    def program(y):
        files = [frame.filename for frame in traceback.extract_stack()]
        calls.append(sum(str(Path(dp.__file__).parent) in name for name in files))
        x = numpyro.sample("x", model()())
        sigma = numpyro.sample("sigma", dist.HalfNormal())
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    posterior = run(program, 0.3, method=None)
    assert len(calls) <= 6
    posterior.run(jax.random.key(1), 0.4)
    assert len(calls) <= 10
    assert max(calls) <= 8  # functions of the library between `run` and the program


def test_traced_functions_are_equal_where_they_compute_the_same() -> None:
    def function(scale, offset):
        return lambda x: scale * jax.nn.relu(x) + offset

    offset, other = jnp.arange(3.0), jnp.ones(3)
    base = Traced(function(2.0, offset), jnp.zeros(3))
    assert base._code == Traced(function(2.0, other), jnp.zeros(3))._code
    assert base._code != Traced(function(2.000001, offset), jnp.zeros(3))._code
    assert base._code != Traced(function(2.0, offset), jnp.zeros(3, int))._code
    inner = [Traced(jax.jit(function(2.0, x)), jnp.zeros(3)) for x in (offset, other)]
    x = jnp.array([-1.0, 2.0, 3.0])
    for each, shift in zip(inner, (offset, other), strict=True):
        np.testing.assert_allclose(each(x), 2 * jax.nn.relu(x) + shift)
    with pytest.raises(TypeError, match="structure"):
        base(x, x)


# Interrupts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [0, 1])
def test_an_interrupt_keeps_the_chains_that_are_finished(held, monkeypatch, chain: int) -> None:
    original, count = runs._end, [0]

    def interrupted(*args):
        if count[0] == chain:
            raise KeyboardInterrupt
        count[0] += 1
        return original(*args)

    whole = run(reads_globals)
    monkeypatch.setattr(runs, "_end", interrupted)
    posterior = dp.Posterior(
        reads_globals, METHOD, num_chains=3, num_samples=100, progress_bar=False
    )
    if chain == 0:
        with pytest.raises(KeyboardInterrupt):
            posterior.run(jax.random.key(0))
        return
    with pytest.warns(UserWarning, match="after 1 of 3 chains, which are kept; .* is discarded"):
        posterior.run(jax.random.key(0))
    assert posterior.get_samples(group_by_chain=True)["x"].shape == (1, 100, 1)
    np.testing.assert_allclose(
        posterior.draws.log_evidence[0], whole.draws.log_evidence[0], rtol=1e-5
    )
    posterior.to_arviz()


def test_how_a_run_is_cut_changes_nothing(held, monkeypatch) -> None:
    whole = run(reads_globals)
    monkeypatch.setattr(runs, "_next_chunk", lambda length, seconds: 1)
    cut = run(reads_globals)
    np.testing.assert_array_equal(whole.get_samples()["x"], cut.get_samples()["x"])


# Evidence and its error ---------------------------------------------------------------------------


def draws_of(log_evidence, variance=0.0) -> Draws:
    """Of several chains: `Draws` is annotated for one."""
    values = jnp.asarray(log_evidence)
    one = Draws({}, jnp.zeros((1, 0)), jnp.zeros(()), jnp.zeros(()), jnp.zeros(0), {}, {})
    return eqx.tree_at(
        lambda draws: (draws.log_evidence, draws.evidence_variance),
        one,
        (values, jnp.full(len(values), variance)),
    )


@pytest.mark.slow
def test_the_interval_covers_as_stated() -> None:
    """Four chains determine their spread roughly: the error bar counts for that."""
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for row in rng.normal(-2.0, 0.05, (4_000, 4)):
        found = pooled_evidence(draws_of(row), "")
        value, error = found
        hits += (
            abs(value + 2.0) < error,
            abs(value + 2.0) < 2 * error,
            found.interval[0] < -2.0 < found.interval[1],
        )
    one, two, interval = hits / 4_000
    t = scipy.stats.t(3)
    wide = t.ppf(scipy.stats.norm.cdf(1))
    for share, wanted in (
        (one, 2 * scipy.stats.norm.cdf(1) - 1),
        (two, 2 * t.cdf(2 * wide) - 1),
        (interval, 0.95),
    ):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 4_000)


def test_the_larger_error_counts() -> None:
    narrow = pooled_evidence(draws_of([-1.0, -1.01, -0.99, -1.0], variance=0.04), "")
    np.testing.assert_allclose(narrow.standard_error, 0.1, rtol=0.05)
    assert pooled_evidence(draws_of([-1.0], variance=0.04), "").standard_error == pytest.approx(0.2)


def test_evidence_that_is_not_to_be_trusted_says_so() -> None:
    found = pooled_evidence(draws_of([-1.0, -1.1]), "collapsed at t = 3")
    assert not found.is_trusted
    assert repr(found).endswith("nats, not to be trusted (collapsed at t = 3)")
    assert "±" not in repr(found)


@pytest.mark.slow
def test_a_collapse_and_a_disagreement_flag_the_evidence(held) -> None:
    def sharp():
        x = numpyro.sample("x", model()())
        numpyro.sample("y", dist.Normal(10 * jnp.sin(9 * x[0]), 1e-3), obs=4.0)

    with pytest.warns(UserWarning, match="effective sample size|differs by"):
        posterior = run(sharp)
    assert not posterior.log_evidence.is_trusted
    assert posterior.faults
    attributes = posterior.to_arviz()["posterior"].attrs
    assert attributes["log_evidence_fault"] == "; ".join(posterior.faults)


def test_nan_weights_are_counted_and_their_site_is_named() -> None:
    def program(y):
        x = numpyro.sample("x", model()())
        numpyro.sample("fine", dist.Normal(x[0], 1.0), obs=0.2)
        numpyro.sample("y", dist.Normal(0.0, jnp.log(x[0] + 1.5)), obs=y)

    with pytest.warns(UserWarning, match=r"% of the weights were NaN, at t = \d+"):
        posterior = run(program, 1.0)
    assert "NaN" in posterior.log_evidence.fault


def test_pareto_k_of_equal_and_of_few_weights_is_nan() -> None:
    heavy = np.random.default_rng(0).pareto(1.5, size=(2, 1_000))  # a tail with k = 2 / 3
    np.testing.assert_allclose(pareto_k(np.log(heavy)), 2 / 3, atol=0.3)
    for weights in (np.zeros((2, 1_000)), np.zeros((2, 5))):
        np.testing.assert_array_equal(pareto_k(weights), [np.nan, np.nan])


@pytest.mark.slow
def test_no_pareto_k_of_discrete_weights() -> None:
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(5))
    network = dp.denoisers.Enumerated(process, [[0, 1], [1, 0], [1, 1]], [0.2, 0.3, 0.5])
    bits = dp.DiffusionModel(process, network, (2,))

    def program(y):
        x = numpyro.sample("x", bits())
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    posterior = run(program, 1.0, method=dp.TwistedSMC(100))
    assert np.all(np.isnan(posterior.pareto_k))


# Draws over chains --------------------------------------------------------------------------------


def test_chains_of_equal_evidence_keep_their_draws() -> None:
    places = pooled_indices(jax.random.key(0), np.full(3, -2.0), 5)
    np.testing.assert_array_equal(places[..., 0], np.arange(3)[:, None] + np.zeros((3, 5)))
    np.testing.assert_array_equal(places[..., 1], np.arange(5) + np.zeros((3, 5)))


def test_chains_count_by_their_evidence() -> None:
    log_evidence = np.log([1.0, 2.0, 5.0])
    counts = np.zeros(3)
    for seed in range(50):
        places = pooled_indices(jax.random.key(seed), log_evidence, 100)
        counts += np.bincount(places[..., 0].ravel(), minlength=3)
        for chain in range(3):  # what a chain keeps of its own stays where it was
            own = places[chain, :, 0] == chain
            np.testing.assert_array_equal(places[chain, own, 1], np.flatnonzero(own))
    np.testing.assert_allclose(counts / counts.sum(), np.array([1, 2, 5]) / 8, atol=1e-3)


@pytest.mark.slow
def test_few_particles_in_many_chains_are_pooled_without_bias() -> None:
    """Three particles a chain, far from enough for one chain alone."""

    def program(y):
        x = numpyro.sample("x", model()())
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    method = dp.TwistedSMC(3, twist=dp.twists.Perturbation(dp.twists.LinearPower()))
    posterior = dp.Posterior(program, method, num_chains=2_000, num_samples=3, progress_bar=False)
    with pytest.warns(UserWarning, match="collapsed"):
        posterior.run(jax.random.key(0), -1.3)
    pooled = float(posterior.get_samples()["x"].mean())
    alone = float(posterior.draws.x_0["x"].mean())
    assert abs(pooled + 1.04) < 0.05
    assert abs(alone + 1.04) > 0.07


# What is printed ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_known_entries_are_shown_as_known(capsys, recwarn) -> None:
    network = dp.denoisers.Gaussian(SCHEDULE, np.zeros(3), np.eye(3) + 0.5)
    three = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (3,))

    def program(y):
        x = numpyro.sample("x", three())
        numpyro.sample("y", dist.Delta(x[1:], event_dim=1), obs=y)

    posterior = run(program, np.array([0.25, -1.5]), method=dp.TwistedSMC(100))
    posterior.print_summary()
    printed = capsys.readouterr().out
    assert "x[1]: observed, 0.25" in printed
    assert "x[2]: observed, -1.5" in printed
    assert "nan" not in printed
    idata = posterior.to_arviz()
    assert list(idata["posterior"]["x_unknown"].values) == ["0"]
    np.testing.assert_allclose(idata["constant_data"]["x"].values, [np.nan, 0.25, -1.5])
    import arviz

    assert not np.any(np.isnan(arviz.summary(idata).select_dtypes("number").to_numpy()))
    assert not [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.slow
def test_scoped_names_survive_arviz(held) -> None:
    posterior = run(handlers.scope(reads_globals, "prior"))
    idata = posterior.to_arviz(dims={"prior/x": ["pixel"]})
    assert idata["posterior"]["prior.x"].dims == ("chain", "draw", "pixel")


def test_the_prior_group_has_deterministic_sites(held) -> None:
    def program():
        reads_globals()
        numpyro.deterministic("constant", jnp.ones(2))

    idata = run(program).to_arviz()
    assert {"x", "constant"} <= set(idata["prior"].data_vars)


def test_old_keys_are_taken(held) -> None:
    posterior = dp.Posterior(
        reads_globals, METHOD, num_chains=2, num_samples=100, progress_bar=False
    )
    posterior.run(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(
        posterior.get_samples()["x"], run(reads_globals).get_samples()["x"]
    )


RATES = {
    "rate": lambda x: dist.Poisson(x[0]),
    "scale": lambda x: dist.Normal(0.0, x[0]),
    "simplex": lambda x: dist.Categorical(probs=x / x.sum()),
    "concentration": lambda x: dist.Gamma(x[0], 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_a_rate_or_scale_made_of_x_survives_arviz(name: str) -> None:
    network = dp.denoisers.Gaussian(SCHEDULE, np.full(2, 5.0), np.full(2, 0.01))
    positive = dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), network, (2,))

    def program(y):
        x = numpyro.sample("x", positive())
        numpyro.sample("y", RATES[name](x), obs=y)

    idata = run(program, np.asarray(1)).to_arviz()
    assert np.all(np.isfinite(idata["log_likelihood"]["y"].values))


@pytest.mark.slow
def test_the_resolved_method_is_shown(held) -> None:
    posterior = dp.Posterior(reads_globals, num_chains=1, num_samples=10, progress_bar=False)
    assert posterior.method is None
    posterior.run(jax.random.key(0))
    assert "Tracer" not in repr(posterior.method)
    assert isinstance(posterior.method.twist, dp.twists.Quadrature)
    assert "twist=Quadrature" in posterior.to_arviz()["posterior"].attrs["method"]


@pytest.mark.slow
def test_a_method_is_chosen_for_each_run() -> None:
    def program(y):
        x = numpyro.sample(
            "x",
            dp.DiffusionModel(
                dp.GaussianDiffusion(SCHEDULE),
                dp.denoisers.Gaussian(SCHEDULE, np.zeros(70), np.ones(70)),
                (70,),
            )(),
        )
        numpyro.sample("y", dist.Normal(x[: len(y)], 0.5).to_event(1), obs=y)

    posterior = dp.Posterior(program, num_chains=1, num_samples=10, progress_bar=False)
    posterior.run(jax.random.key(0), np.zeros(2))
    few = posterior.method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chains of eight steps collapse on so many numbers
        posterior.run(jax.random.key(0), np.zeros(70))
    assert type(posterior.method.twist) is not type(few.twist)
    assert "assumed" not in str(posterior.log_evidence)
    method = dp.TwistedSMC(100, twist=dp.twists.MomentMatching())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        isotropic = run(program, np.zeros(70), method=method)
    assert "70 observed numbers is assumed" in str(isotropic.log_evidence)
