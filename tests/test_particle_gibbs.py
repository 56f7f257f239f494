"""Particle Gibbs in NumPyro's own MCMC, alone and beside NUTS."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs

import diffppl as dp

from . import oracles
from .statistics import assert_within_standard_errors

MEAN, VARIANCE = np.array([0.5, -0.3]), np.array([1.4, 0.3])
MAP, NOISE = np.array([[1.0, -0.7]]), 0.4


def gaussian_model(num_steps: int = 12, **settings) -> dp.DiffusionModel:
    """Few steps: the chain is exact for normal data however few."""
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.05, 50.0))
    network = dp.denoisers.Gaussian(schedule, MEAN, VARIANCE)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,), **settings)


def program(y=None):
    x = numpyro.sample("x", gaussian_model()())
    numpyro.deterministic("sum", x.sum())
    numpyro.sample("y", dist.Normal(jnp.asarray(MAP) @ x, NOISE).to_event(1), obs=y)


Y = np.array([2.0])


def truth(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = MAP @ np.diag(VARIANCE) @ MAP.T + NOISE**2
    gain = np.diag(VARIANCE) @ MAP.T / total
    return MEAN + gain @ (y - MAP @ MEAN), np.diag(VARIANCE) - gain @ MAP @ np.diag(VARIANCE)


def assert_mcmc_mean(draws: np.ndarray, value: np.ndarray | float, num: float = 4.0) -> None:
    """The mean over `(chains, draws, ...)` is `value`, by the effective number of draws."""
    draws = np.asarray(draws, np.float64)
    error = draws.std(axis=(0, 1)) / np.sqrt(effective_sample_size(draws))
    assert_within_standard_errors(draws.mean(axis=(0, 1)), value, error, num)


@pytest.fixture(scope="module")
def mcmc() -> MCMC:
    mcmc = MCMC(
        dp.ParticleGibbs(program, num_particles=8),
        num_warmup=100,
        num_samples=10_000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), y=jnp.asarray(Y))
    return mcmc


def test_eight_particles_are_exact(mcmc: MCMC) -> None:
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    mean, covariance = truth(Y)
    assert_mcmc_mean(x, mean, num=3.0)
    centred = x - mean
    assert_mcmc_mean(centred**2, np.diag(covariance), num=3.0)
    assert_mcmc_mean(centred[..., 0] * centred[..., 1], covariance[0, 1], num=3.0)


def test_deterministic_sites_and_arviz(mcmc: MCMC) -> None:
    import arviz as az

    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws["sum"], draws["x"].sum(-1), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ArviZ says of NumPyro is not ours
        idata = az.from_numpyro(mcmc)
    assert dict(idata["posterior"]["x"].sizes) == {"chain": 2, "draw": 10_000, "x_dim_0": 2}


@pytest.mark.slow
def test_two_particles_are_exact() -> None:
    """Ancestor sampling alone must mix: the only other particle hardly ever wins every step."""
    kernel = dp.ParticleGibbs(program, num_particles=2)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=20_000, progress_bar=False)
    mcmc.run(jax.random.key(1), y=jnp.asarray(Y))
    assert_mcmc_mean(mcmc.get_samples()["x"][None], truth(Y)[0])


# Beside NUTS -------------------------------------------------------------------------------------

SCALING = dp.Scaling(3.0, 2.0)
SEEN = np.array([4.0, 1.0, 5.5, 3.5])


def unknown_noise(y=None):
    x = numpyro.sample("x", gaussian_model(scaling=SCALING)())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(x[0], sigma).expand([4]), obs=y)


def joint_moments() -> tuple[float, float]:
    """E[x_0] and E[log sigma] by quadrature."""
    x = np.linspace(-12, 18, 601)
    sigma = np.geomspace(1e-2, 30, 900)
    log_joint = (
        scipy.stats.norm(3 + 2 * MEAN[0], 2 * np.sqrt(VARIANCE[0])).logpdf(x)[:, None]
        + scipy.stats.halfnorm(scale=2.0).logpdf(sigma)
        + scipy.stats.norm(x[:, None, None], sigma[:, None]).logpdf(SEEN).sum(-1)
    )
    weights = np.exp(log_joint - log_joint.max()) * np.gradient(sigma)
    weights /= weights.sum()
    return float(weights.sum(1) @ x), float(weights.sum(0) @ np.log(sigma))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_block_of_gibbs_beside_nuts(shared: bool) -> None:
    kernel = dp.ParticleGibbs(unknown_noise, num_particles=8)
    others = NUTS(kernel.model if shared else unknown_noise)
    num_samples = 3_000 if shared else 5
    mcmc = MCMC(
        Gibbs([(kernel, ["x"]), (others, None)]),
        num_warmup=200 if shared else 2,
        num_samples=num_samples,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(2), y=jnp.asarray(SEEN))
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["x"].shape == (1, num_samples, 2)
    if shared:
        x, log_sigma = joint_moments()
        assert_mcmc_mean(draws["x"][..., 0], x)
        assert_mcmc_mean(jnp.log(draws["sigma"]), log_sigma)


@pytest.mark.slow
def test_bits_and_exact_entries() -> None:
    """Three bits, of which one is seen as it is and one through flips, by enumeration."""
    states = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(200), rate=0.5)
    network = dp.denoisers.Enumerated(process, states, weights)
    model = dp.DiffusionModel(process, network, (3,))

    def bits(first=None, second=None):
        x = numpyro.sample("x", model())
        numpyro.sample("first", dist.Delta(x[0]), obs=first)
        numpyro.sample("second", dist.Bernoulli(jnp.where(x[1] == 1, 0.7, 0.2)), obs=second)

    mcmc = MCMC(dp.ParticleGibbs(bits, 8), num_warmup=50, num_samples=2_000, progress_bar=False)
    mcmc.run(jax.random.key(3), first=jnp.array(1), second=jnp.array(1))
    x = np.asarray(mcmc.get_samples()["x"])
    assert np.all(x[:, 0] == 1)
    every = oracles.all_states(2, 3)
    joint = np.exp(oracles.discrete_model_log_prob(model, every, every))
    joint *= (every[:, 0] == 1) * np.where(every[:, 1] == 1, 0.7, 0.2)
    for state in states[[0, 2]]:
        match = (x == state).all(-1)[None]
        truth = joint[(every == state).all(-1)].item() / joint.sum()
        error = match.std() / np.sqrt(effective_sample_size(match.astype(float)))
        assert abs(match.mean() - truth) < 4 * error


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="program"):
        dp.ParticleGibbs(3)
    with pytest.raises(ValueError, match="num_particles=1"):
        dp.ParticleGibbs(program, 1)
    mcmc = MCMC(dp.ParticleGibbs(unknown_noise), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"'sigma'.*Gibbs"):
        mcmc.run(jax.random.key(0), y=jnp.asarray(SEEN))
