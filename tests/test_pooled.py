"""The pooled covariance: against that of each particle, and against closed-form posteriors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp
from diffppl.conditioning.bound import BoundProgram
from diffppl.conditioning.chains import CovarianceMatched, Particle
from diffppl.conditioning.target import Level, Target
from diffppl.conditioning.twists import MomentMatching, PooledMomentMatching, Tweedie

from .marks import slow
from .statistics import assert_within_standard_errors

KEY = jax.random.key(0)
SIZE, NUM = 14, 10
RNG = np.random.default_rng(3)
MATRIX = RNG.normal(size=(NUM, SIZE)) / np.sqrt(SIZE)
WEIGHTS = np.array([0.5, 0.2, 0.3])
MEANS = np.array([1.5, 2.0, -1.2])[:, None] * RNG.normal(size=(3, SIZE))
ROOT = RNG.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
COVARIANCE = 0.3 * ROOT @ ROOT.T + 0.05 * np.eye(SIZE)
Y = MATRIX @ MEANS[0] + 0.3 * RNG.normal(size=NUM)
NOISES = np.geomspace(0.2, 0.6, NUM)
METHOD = dp.TwistedSMC(1_000, twist=PooledMomentMatching())


def mixture(num_steps: int = 100) -> dp.DiffusionModel:
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.02, 60.0))
    network = dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, COVARIANCE[None])
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (SIZE,))


def linear(y=None, num_steps=100, noise=NOISES):
    x = numpyro.sample("x", mixture(num_steps)())
    numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, noise).to_event(1), obs=y)


def unknown_scale(y=None, num_steps=100):
    x = numpyro.sample("x", mixture(num_steps)())
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, sigma * NOISES).to_event(1), obs=y)


def correlated(y=None, num_steps=100):
    x = numpyro.sample("x", mixture(num_steps)())
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    covariance = sigma**2 * (np.diag(NOISES**2) + 0.02)
    numpyro.sample("y", dist.MultivariateNormal(jnp.asarray(MATRIX) @ x, covariance), obs=y)


def two_scales(y=None, num_steps=100):
    x = numpyro.sample("x", mixture(num_steps)())
    mean = jnp.asarray(MATRIX) @ x
    for part in (slice(0, 4), slice(4, NUM)):
        sigma = numpyro.sample(f"sigma{part.start}", dist.LogNormal(-1.0, 0.3))
        seen = None if y is None else y[part]
        numpyro.sample(f"y{part.start}", dist.Normal(mean[part], sigma).to_event(1), obs=seen)


def rate(y=None, num_steps=100):
    x = numpyro.sample("x", mixture(num_steps)())
    rates = jnp.exp(0.5 * jnp.asarray(MATRIX) @ x + 1.0)
    numpyro.sample("y", dist.Poisson(rates).to_event(1), obs=y)


def target_of(program, y=Y, **kwargs) -> Target:
    return Target(BoundProgram(program, (), {"y": jnp.asarray(y), **kwargs}))


def cloud(target: Target, t: int, num: int = 6):
    """Particles at t of every mode, and latents."""
    alpha_bar = target.models["x"].process.schedule.alpha_bar()[t]
    rng = np.random.default_rng(5)
    x_0 = MEANS[np.arange(num) % 3] + 0.4 * rng.normal(size=(num, SIZE))
    x = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * rng.normal(size=x_0.shape)
    latents = 0.3 * rng.normal(size=(num, target.num_latents))
    return {"x": jnp.asarray(x, float)}, jnp.asarray(latents, float)


def adapted(target: Target, t: int, **options):
    x, latents = cloud(target, t)
    twist = PooledMomentMatching(**options).resolve(target)
    weights = jnp.full(len(latents), -jnp.log(len(latents)))
    return twist.adapted(target, x, Level(0, t), latents, weights), x, latents


@eqx.filter_jit
def values(twist, target, x, latents, t: int):
    return jax.vmap(lambda x, u: twist.evaluate(target, x, Level(0, t), u))(x, latents)


# The twist ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [unknown_scale, *slow(linear, correlated)])
def test_all_directions_give_the_covariance_of_each_particle(program) -> None:
    """For noise in proportion to that of the pool, as for one unknown scale."""
    target = target_of(program)
    for t in (15, 60, 99):
        twist, x, latents = adapted(target, t, num_directions=NUM, min_ratio=0.0)
        found = values(twist, target, x, latents, t)
        exact = values(MomentMatching(Tweedie()), target, x, latents, t)
        np.testing.assert_allclose(found.log_value, exact.log_value, rtol=1e-3)
        means = found.guided["x"].mean, exact.guided["x"].mean
        np.testing.assert_allclose(*means, rtol=1e-2, atol=3e-3)


def test_noise_that_is_not_in_proportion() -> None:
    """The solution is exact; the determinant is not, but it follows that of each particle."""
    target, t = target_of(two_scales), 40
    twist, x, latents = adapted(target, t, num_directions=NUM, min_ratio=0.0)
    found = values(twist, target, x, latents, t)
    exact = values(MomentMatching(Tweedie()), target, x, latents, t)
    means = found.guided["x"].mean, exact.guided["x"].mean
    np.testing.assert_allclose(*means, rtol=1e-2, atol=3e-3)
    # The values of these particles differ by several nats.
    assert np.std(exact.log_value) > 5
    assert np.max(np.abs(found.log_value - exact.log_value)) < 0.3


def test_a_few_directions_are_those_of_the_modes() -> None:
    """Covariances of three modes, equal within modes, differ in two directions."""
    target, t = target_of(linear), 60
    errors = {}
    for num in (1, 4):
        twist, x, latents = adapted(target, t, num_references=6, num_directions=num, min_ratio=0.01)
        exact = values(MomentMatching(Tweedie()), target, x, latents, t)
        found = values(twist, target, x, latents, t)
        errors[num] = np.std(found.log_value - exact.log_value)
    assert errors[4] < 0.1 < errors[1]


def test_references_of_one_covariance() -> None:
    """For normal data the references do not differ, in any direction."""

    def program(y=None):
        schedule = dp.schedules.log_snr_linear(50, noise_to_signal=(0.02, 60.0))
        network = dp.denoisers.Gaussian(schedule, MEANS[0], COVARIANCE)
        model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (SIZE,))
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, NOISES).to_event(1), obs=y)

    target = target_of(program)
    twist, x, latents = adapted(target, 20)
    found = values(twist, target, x, latents, 20)
    exact = values(MomentMatching(Tweedie()), target, x, latents, 20)
    np.testing.assert_allclose(found.log_value, exact.log_value, rtol=1e-3)
    posterior = dp.Posterior(
        program,
        dp.TwistedSMC(200, twist=METHOD.twist),
        num_chains=1,
        num_samples=200,
        progress_bar=False,
    )
    posterior.run(KEY, y=jnp.asarray(Y))
    total = MATRIX @ COVARIANCE @ MATRIX.T + np.diag(NOISES**2)
    truth = scipy.stats.multivariate_normal(MATRIX @ MEANS[0], total).logpdf(Y)
    np.testing.assert_allclose(posterior.log_evidence.value, truth, atol=0.02)
    assert np.min(posterior.step_stats["ess"]) > 199


@pytest.mark.parametrize("program", [linear, unknown_scale, rate])
@pytest.mark.parametrize("t", [40, 1])
def test_the_weights_of_a_step_have_mean_one(program, t: int) -> None:
    """Also for a particle that differs from the references, in its noise as well."""
    y = np.arange(NUM) if program is rate else Y
    target = target_of(program, y)
    twist, x, latents = adapted(target, t)
    particle_x = {"x": x["x"][0] + 0.1}
    level, u = Level(0, jnp.asarray(t)), latents[0] - 0.7
    final = Level(0, 1) if t == 1 else level
    chain = eqx.filter_jit(CovarianceMatched().prepared)(target, twist, final)

    @eqx.filter_jit
    def log_ratios(keys):
        twisted = chain.select(twist.evaluate(target, particle_x, level, u))
        particle = Particle(particle_x, twisted, u)
        if t == 1:
            return jax.vmap(lambda key: chain.final_step(key, target, particle, 0))(keys)[1]
        return jax.vmap(lambda key: chain.step(key, target, particle, level))(keys)[1]

    ratios = np.exp(log_ratios(jax.random.split(KEY, 20_000)))
    assert_within_standard_errors(ratios.mean(), 1.0, ratios.std() / np.sqrt(len(ratios)))
    assert ratios.std() > 1e-3


# Posteriors -----------------------------------------------------------------------------------


def truth(sigma: float = 1.0) -> tuple[float, np.ndarray, np.ndarray]:
    """Evidence, weights of the modes and posterior mean, for noise `sigma` times NOISES."""
    total = MATRIX @ COVARIANCE @ MATRIX.T + np.diag((sigma * NOISES) ** 2)
    log_joint = np.log(WEIGHTS) + [
        scipy.stats.multivariate_normal(MATRIX @ mean, total).logpdf(Y) for mean in MEANS
    ]
    log_evidence = np.logaddexp.reduce(log_joint)
    weights = np.exp(log_joint - log_evidence)
    gain = COVARIANCE @ MATRIX.T @ np.linalg.inv(total)
    means = MEANS + (Y - MEANS @ MATRIX.T) @ gain.T
    return log_evidence, weights, weights @ means


@pytest.mark.parametrize("scale", [12.0, *slow(1.0)])
def test_a_mixture(scale: float) -> None:
    """Of one mode for little noise, and of three for much."""
    posterior = dp.Posterior(linear, METHOD, num_chains=4, num_samples=1_000, progress_bar=False)
    # The chain's own error is small at 300 steps.
    posterior.run(KEY, y=jnp.asarray(Y), noise=jnp.asarray(scale * NOISES), num_steps=300)
    log_evidence, weights, mean = truth(scale)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, log_evidence, error, num=4.0)
    x = np.asarray(posterior.get_samples(group_by_chain=True)["x"], np.float64)
    chain_means = x.mean(axis=1)
    error = np.maximum(chain_means.std(axis=0, ddof=1) / 2, x.std(axis=(0, 1)) / np.sqrt(4_000))
    assert_within_standard_errors(chain_means.mean(axis=0), mean, error, num=5.0)
    assert (np.sort(weights)[-2] > 0.1) == (scale == 12.0)
    assert np.min(posterior.step_stats["ess"]) > 250


@pytest.mark.slow
def test_an_unknown_scale() -> None:
    posterior = dp.Posterior(
        unknown_scale, METHOD, num_chains=4, num_samples=1_000, progress_bar=False
    )
    posterior.run(KEY, y=jnp.asarray(Y), num_steps=300)
    grid = np.linspace(-2.5, 2.5, 401)
    log_joint = np.array([truth(np.exp(z))[0] for z in grid])
    log_joint += scipy.stats.norm(0, 0.5).logpdf(grid) + np.log(grid[1] - grid[0])
    log_evidence = np.logaddexp.reduce(log_joint)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, log_evidence, error, num=4.0)
    log_sigma = np.log(posterior.get_samples(group_by_chain=True)["sigma"]).astype(np.float64)
    mean = np.exp(log_joint - log_evidence) @ grid
    error = max(log_sigma.mean(1).std(ddof=1) / 2, log_sigma.std() / np.sqrt(4_000))
    assert_within_standard_errors(log_sigma.mean(), mean, error, num=5.0)


@pytest.mark.slow
def test_entries_without_noise() -> None:
    """Ten of fourteen entries are known."""

    def program(y=None):
        x = numpyro.sample("x", mixture(300)())
        numpyro.sample("y", dist.Delta(x[:NUM], event_dim=1), obs=y)

    y = MEANS[0, :NUM] + 0.2
    posterior = dp.Posterior(
        program,
        dp.TwistedSMC(2_000, twist=METHOD.twist),
        num_chains=4,
        num_samples=2_000,
        progress_bar=False,
    )
    posterior.run(KEY, y=jnp.asarray(y))
    seen = COVARIANCE[:NUM, :NUM]
    log_joint = np.log(WEIGHTS) + [
        scipy.stats.multivariate_normal(mean[:NUM], seen).logpdf(y) for mean in MEANS
    ]
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, np.logaddexp.reduce(log_joint), error, num=4.0)
    x = np.asarray(posterior.get_samples()["x"])
    np.testing.assert_array_equal(x[:, :NUM], np.broadcast_to(np.float32(y), (len(x), NUM)))


# Refusals -------------------------------------------------------------------------------------


def test_other_methods_refuse_it() -> None:
    twist = PooledMomentMatching()
    with pytest.raises(ValueError, match=r"twist=MomentMatching\(\)"):
        dp.Guidance(twist).resolve(target_of(linear), 10)
    kernel = dp.ParticleGibbs(linear, 5, twist=twist)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"twist=MomentMatching\(\)"):
        mcmc.run(KEY, y=jnp.asarray(Y))


def test_observations_without_moments_are_refused() -> None:
    def program(y=None):
        x = numpyro.sample("x", mixture(10)())
        numpyro.factor("f", -jnp.sum((x - y[0]) ** 4))

    with pytest.raises(ValueError, match="requires observed sites with a mean"):
        dp.twists.PooledMomentMatching().resolve(target_of(program))
