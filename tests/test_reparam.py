"""Reparameterised diffusion sites against closed forms: linear chains and flows of normal data."""

from typing import NamedTuple

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import diffppl as dp

from . import chain_oracles, oracles, statistics
from .lower import lower_model

SCHEDULE = dp.schedules.log_snr_linear(10, noise_to_signal=(0.3, 20.0))
MEAN, VARIANCE = np.array([1.0, -2.0]), np.array([1.0, 0.3])
SCALING = dp.Scaling(10.0, 3.0)
# y = x_0 + x_1 / 2 + shift + noise, with shift ~ N(0, 4)
MATRIX, NOISE, Y = np.array([[1.0, 0.5, 1.0]]), np.array([[1.0]]), np.array([21.0])


def normal_model(schedule, scaling=SCALING) -> dp.DiffusionModel:
    return lower_model(schedule, MEAN, VARIANCE, scaling=scaling)


MODEL = normal_model(SCHEDULE)


def program(y=None):
    x = numpyro.sample("x", MODEL())
    shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(x[0] + 0.5 * x[1] + shift, 1.0), obs=y)


def with_noise(reparam, program=program):
    return handlers.reparam(program, config={"x": reparam})


# Truth -----------------------------------------------------------------------------------------


def chain_moments(schedule) -> tuple[np.ndarray, np.ndarray]:
    return chain_oracles.gaussian_chain_moments(MEAN, VARIANCE, schedule.alpha_bar())


def flow_moments(schedule) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variances of the flow's x_0: (x - a m) / sqrt(a^2 s^2 + 1 - a^2) is conserved."""
    alpha_bar = np.asarray(schedule.alpha_bar(), np.float64)
    first, last = alpha_bar[1], alpha_bar[-1]
    end = np.sqrt(last * VARIANCE + 1 - last)
    slope = np.sqrt(VARIANCE + (1 - first) / first) / end
    return MEAN - slope * np.sqrt(last) * MEAN, slope**2


class Case(NamedTuple):
    reparam: object
    prior: tuple[np.ndarray, np.ndarray]  # in model units

    def user_prior(self) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = self.prior
        return 10 + 3 * mean, np.diag(9 * variance)

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of x and shift."""
        mean, covariance = self.user_prior()
        prior = np.append(mean, 0.0), np.diag([*np.diag(covariance), 4.0])
        return oracles.linear_gaussian_posterior(*prior, Y, MATRIX, NOISE)[:2]


CASES = {
    "flow": Case(dp.FlowReparam(), flow_moments(SCHEDULE)),
    "chain": Case(dp.ChainReparam(), chain_moments(SCHEDULE)),
    "short chain": Case(dp.ChainReparam(num_steps=5), chain_moments(SCHEDULE.respace(5))),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_markov_mean(draws, truth) -> None:
    """The mean of dependent draws, shape `(chains, draws, ...)`, is the truth."""
    draws = np.asarray(draws, np.float64)
    error = draws.std((0, 1)) / np.sqrt(effective_sample_size(draws))
    statistics.assert_within_standard_errors(draws.mean((0, 1)), truth, error)


# Posteriors ------------------------------------------------------------------------------------


def test_the_cases_can_be_told_apart():
    """The prior of each case is its own, by more than the tests of the moments let pass."""
    moments = [np.concatenate(case.prior) for case in CASES.values()]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(moments[i] - moments[j]).max() > 0.05


@each_case
def test_the_prior_is_unchanged(case: Case):
    draws = Predictive(with_noise(case.reparam), num_samples=20_000)(jax.random.key(0))
    statistics.assert_moments(draws["x"], *case.user_prior())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "flow"])
def test_nuts_finds_the_linear_gaussian_posterior(name: str):
    case = CASES[name]
    moved, counts = with_noise(case.reparam), {"num_warmup": 300, "num_samples": 800}
    mcmc = MCMC(NUTS(moved), **counts, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), y=jnp.asarray(Y[0], float))
    draws = mcmc.get_samples(group_by_chain=True)
    joint = np.concatenate([draws["x"], draws["shift"][..., None]], axis=-1).astype(np.float64)
    mean, covariance = case.posterior()
    assert np.abs(covariance[np.triu_indices(3, 1)]).min() > 0.2  # the observation joins them
    assert_markov_mean(joint, mean)
    centred = joint - mean
    assert_markov_mean(centred[..., :, None] * centred[..., None, :], covariance)
    idata = az.from_numpyro(mcmc)
    assert idata["posterior"]["x"].shape == (2, 800, 2)
    assert {"x[0]", "x[1]", "shift"} <= set(az.summary(idata).index)


@pytest.mark.slow
def test_svi_finds_the_mean():
    """The best normal guide with independent coordinates has the right mean, whatever its width."""
    case, y = CASES["chain"], jnp.asarray(Y[0], float)
    moved = with_noise(case.reparam)
    guide = AutoNormal(moved)
    rate = optax.cosine_decay_schedule(0.1, 400)
    svi = SVI(moved, guide, optax.adam(rate), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(0), 400, y=y, progress_bar=False)
    latents = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(1_000,))
    draws = Predictive(moved, latents)(jax.random.key(2), y=y)["x"]
    joint = np.concatenate([draws, latents["shift"][:, None]], axis=-1)
    statistics.assert_mean(joint, case.posterior()[0])


# Shapes ----------------------------------------------------------------------------------------


class Shifted(eqx.Module):
    """E[x_0 | x_t] for x_0 ~ N(context, 1)."""

    schedule: dp.schedules.AbstractSchedule

    def __call__(self, x_t, t, context):
        alpha_bar = self.schedule.alpha_bar()[t]
        return context + jnp.sqrt(alpha_bar) * (x_t - jnp.sqrt(alpha_bar) * context)


GUIDED = dp.DiffusionModel(
    dp.GaussianDiffusion(SCHEDULE),
    Shifted(SCHEDULE),
    (2,),
    prediction=dp.predictions.Data(),
    context_shape=(2,),
    scaling=dp.Scaling(10.0, 3.0),
)
CONTEXT = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), float)


def plates(context):
    with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
        return numpyro.sample("x", GUIDED(context[:, None]))


def expanded(context):
    return numpyro.sample("x", GUIDED(context[:, None]).expand([3, 4]))


def as_event(context):
    with numpyro.plate("rows", 3):
        return numpyro.sample("x", GUIDED(context[:, None]).expand([3, 4]).to_event(1))


@pytest.mark.parametrize(
    ("reparam", "shaped"),
    [
        (dp.FlowReparam(), plates),
        (dp.ChainReparam(), plates),
        pytest.param(dp.ChainReparam(), expanded, marks=pytest.mark.slow),
        pytest.param(dp.ChainReparam(), as_event, marks=pytest.mark.slow),
    ],
    ids=["flow-plates", "chain-plates", "chain-expanded", "chain-as_event"],
)
def test_batches_are_single_events_side_by_side(reparam, shaped):
    seeded = handlers.seed(with_noise(reparam, shaped), jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(CONTEXT)
    base, x = trace["x_base"], trace["x"]["value"]
    length = (11,) * isinstance(reparam, dp.ChainReparam)
    assert base["value"].shape == (3, 4, *length, 2)
    assert base["fn"].batch_shape == ((3,) if shaped is as_event else (3, 4))
    assert trace["x"]["type"] == "deterministic"
    assert x.shape == (3, 4, 2)
    np.testing.assert_allclose(
        base["fn"].log_prob(base["value"]).sum(),
        dist.Normal().log_prob(base["value"]).sum(),
        rtol=1e-5,
    )

    def single(context):
        return numpyro.sample("x", GUIDED(context))

    @jax.jit
    def alone(noise, context):
        return handlers.substitute(with_noise(reparam, single), {"x_base": noise})(context)

    tolerance = 1e-5 if length else 1e-4  # the flow's own is 1e-5 a step
    for i, j in [(0, 0), (2, 1), (1, 3)]:
        found = alone(base["value"][i, j], CONTEXT[i])
        np.testing.assert_allclose(found, x[i, j], rtol=tolerance)


def test_the_chain_is_the_models_own_kernels():
    noise = jax.random.normal(jax.random.key(0), (11, 2))
    x = noise[0]
    for t in range(10, 0, -1):
        kernel = MODEL.reverse_kernel(x, t)
        x = kernel.base_dist.loc + kernel.base_dist.scale * noise[11 - t]
    fixed = handlers.substitute(with_noise(dp.ChainReparam()), {"x_base": noise})
    trace = handlers.trace(handlers.seed(fixed, jax.random.key(0))).get_trace()
    np.testing.assert_allclose(trace["x"]["value"], 10 + 3 * x, rtol=1e-5)


def test_one_step_is_a_chain_too():
    """T = 1 is the final step alone: x_0 = sqrt(1 - beta_1) x_1 + sqrt(beta_1) eps."""
    single = normal_model(dp.schedules.Schedule(np.log([4.0])), scaling=None)
    moved = with_noise(dp.ChainReparam(), lambda: numpyro.sample("x", single()))
    trace = handlers.trace(handlers.seed(moved, jax.random.key(0))).get_trace()
    noise = trace["x_base"]["value"]
    expected = np.sqrt(0.8) * noise[0] + np.sqrt(0.2) * noise[1]
    np.testing.assert_allclose(trace["x"]["value"], expected, rtol=1e-5)


# What is refused -------------------------------------------------------------------------------


def bits():
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(4), rate=0.2)
    network = dp.denoisers.Enumerated(process, np.eye(3, dtype=int), np.ones(3) / 3)
    numpyro.sample("x", dp.DiffusionModel(process, network, (3,))())


def normal():
    numpyro.sample("x", dist.Normal())


def masked():
    with handlers.mask(mask=False):
        numpyro.sample("x", MODEL())


def observed():
    numpyro.sample("x", MODEL(), obs=jnp.zeros(2))


@pytest.mark.parametrize("reparam", [dp.FlowReparam(), dp.ChainReparam()], ids=["flow", "chain"])
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (bits, "site 'x' is a model with BernoulliDiffusion.*Posterior with TwistedSMC, or Part"),
        (normal, "site 'x' has a Normal; .* is for a diffusion model"),
        (masked, "site 'x' has a MaskedDistribution"),
        (observed, "site 'x' is observed.*diffppl.elbo"),
        (handlers.condition(normal, {"x": 0.0}), "site 'x' has a Normal"),
        (handlers.condition(program, {"x": jnp.zeros(2)}), "site 'x' is observed"),
    ],
    ids=["bits", "normal", "masked", "observed", "other", "conditioned"],
)
def test_a_site_that_has_no_noise(reparam, program, message: str):
    with pytest.raises(ValueError, match=message):
        handlers.seed(with_noise(reparam, program), jax.random.key(0))()


def test_a_number_of_steps_that_the_chain_does_not_have():
    for num_steps in (0, 11):
        with pytest.raises(ValueError, match=f"num_steps={num_steps} is not between 1"):
            handlers.seed(with_noise(dp.ChainReparam(num_steps)), jax.random.key(0))()
