"""Methods without weights: each against its own recursion or enumeration, with the truth beside."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp
from diffppl.conditioning.bound import BoundProgram
from diffppl.conditioning.choose import choose
from diffppl.conditioning.target import Level, Target
from diffppl.conditioning.twists.normal import conjugate_gradients

from . import oracles
from .marks import slow
from .statistics import assert_mean, assert_moments, assert_within_standard_errors


def run(program, method=None, num_samples=4_000, num_chains=1, seed=0, **data) -> dp.Posterior:
    """Draws of one chain are independent, unless they are particles."""
    posterior = dp.Posterior(
        program, method, num_chains=num_chains, num_samples=num_samples, progress_bar=False
    )
    posterior.run(jax.random.key(seed), **data)
    return posterior


class Levels(NamedTuple):
    """Of a schedule, at t = 0..T: q(x_{t-1} | x_t, x_0) = N(b x_0 + c x_t, v)."""

    abar: np.ndarray
    noise: np.ndarray
    beta: np.ndarray
    b: np.ndarray
    c: np.ndarray
    v: np.ndarray


def levels(schedule) -> Levels:
    log_snr = np.asarray(schedule.log_snr(), np.float64)
    abar, noise = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    before, kept = np.append(np.nan, abar[:-1]), np.append(np.nan, noise[:-1]) / noise
    beta = 1 - abar / before
    return Levels(
        abar, noise, beta, np.sqrt(before) * beta / noise, np.sqrt(1 - beta) * kept, beta * kept
    )


# Guidance, where everything is linear and normal ----------------------------------------------

MEAN, VARIANCE = np.array([0.5, -0.3, 0.1]), np.array([1.4, 0.3, 0.8])
MAP, NOISE = np.array([[1.0, -0.7, 0.4], [0.2, 0.9, -1.1]]), np.array([0.3, 0.6])
Y = np.array([1.3, -0.8])


def log_linear(num_steps: int) -> dp.schedules.log_snr_linear:
    return dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.01, 50.0))


def normal_model(schedule, mean, covariance, scaling=None) -> dp.DiffusionModel:
    network = dp.denoisers.Gaussian(schedule, mean, covariance)
    return dp.DiffusionModel(
        dp.GaussianDiffusion(schedule), network, np.shape(mean), scaling=scaling
    )


def linear(matrix, noise):
    def program(y=None):
        x = numpyro.sample("x", normal_model(log_linear(60), MEAN, VARIANCE)())
        numpyro.sample("y", dist.Normal(jnp.asarray(matrix) @ x, noise).to_event(1), obs=y)

    return program


SCALING = dp.Scaling(1.0, 2.0)  # so that model units are not the user's


def seen_once(schedule, noise: float):
    """x ~ N(0, 1) seen as 1, in model units."""

    def program(y=None):
        x = numpyro.sample("x", normal_model(schedule, np.zeros(1), np.ones(1), SCALING)())
        numpyro.sample("y", dist.Normal(x[0], 2 * noise), obs=y)

    return program


def pair(schedule, correlation: float):
    """Two normals in the user's units of SCALING, the first of them seen."""
    covariance = np.array([[1.0, correlation], [correlation, 1.0]])

    def program(y=None):
        x = numpyro.sample("x", normal_model(schedule, np.zeros(2), covariance, SCALING)())
        numpyro.sample("y", dist.Delta(x[0]), obs=y)

    return program


# What the twist takes for the variances of x_0 given x_t, where they are `left`.
SPREADS = {
    "tweedie": (dp.twists.MomentMatching(dp.twists.Tweedie()), lambda left, noise: left),
    "isotropic": (
        dp.twists.MomentMatching(dp.twists.Isotropic()),
        lambda left, noise: np.full_like(left, noise),
    ),
}


def guided_moments(schedule, spread) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_0 down the guided chain, whose every step is linear."""
    (abar, noise, beta, *steps), identity = levels(schedule), np.eye(3)
    mean, covariance = np.zeros(3), identity
    for t in range(schedule.num_steps, 1, -1):
        b, c, v = (step[t] for step in steps)
        total = abar[t] * VARIANCE + noise[t]
        gain, left = np.sqrt(abar[t]) * VARIANCE / total, noise[t] * VARIANCE / total
        seen = MAP * spread(left, noise[t]) @ MAP.T + np.diag(NOISE**2)
        guide = left[:, None] * MAP.T @ np.linalg.inv(seen)
        rest = identity - guide @ MAP
        slope = b * rest * gain + c * identity
        shift = b * (rest @ ((1 - gain * np.sqrt(abar[t])) * MEAN) + guide @ Y)
        mean = slope @ mean + shift
        covariance = slope @ covariance @ slope.T + np.diag(v + b**2 * left)
    # The last step is conditioned exactly.
    guide = beta[1] * MAP.T @ np.linalg.inv(beta[1] * MAP @ MAP.T + np.diag(NOISE**2))
    slope = np.sqrt(1 - beta[1]) * (identity - guide @ MAP)
    last = beta[1] * (identity - guide @ MAP)
    return slope @ mean + guide @ Y, slope @ covariance @ slope.T + last


@pytest.mark.parametrize("name", ["tweedie", *slow("isotropic")])
def test_guidance_follows_its_recursion(name: str) -> None:
    twist, spread = SPREADS[name]
    x = run(linear(MAP, NOISE), dp.Guidance(twist), y=jnp.asarray(Y)).get_samples()["x"]
    assert_moments(x, *guided_moments(log_linear(60), spread))


def test_moment_matching_alone_is_exact_in_long_chains() -> None:
    mean, covariance, _ = oracles.linear_gaussian_posterior(
        MEAN, np.diag(VARIANCE), Y, MAP, np.diag(NOISE**2)
    )
    found = {name: guided_moments(log_linear(1_000), s) for name, (_, s) in SPREADS.items()}
    errors = {name: np.abs(m - mean).max() for name, (m, _) in found.items()}
    np.testing.assert_allclose(found["tweedie"][0], mean, atol=1e-3)
    np.testing.assert_allclose(found["tweedie"][1], covariance, atol=2e-3)
    assert 0.02 < errors["isotropic"] < 0.05


def test_a_point_estimate_goes_no_further_than_to_the_least_residual() -> None:
    """Bayes' rule where the observations are noisier than x_t, and the least residual elsewhere."""
    schedule = log_linear(60)

    def guided(noise: float, t: int) -> tuple[np.ndarray, np.ndarray]:
        program = linear(MAP, np.full(2, noise))
        target = Target(BoundProgram(program, (jnp.asarray(Y),)))
        x_t = jnp.array([0.3, -1.0, 0.8])
        twisted = dp.twists.PointEstimate().evaluate(
            target, {"x": x_t}, Level(0, jnp.asarray(t)), jnp.zeros(0)
        )
        return tuple(np.asarray(e["x"].mean) for e in (twisted.estimates, twisted.guided))

    abar, rest = float(schedule.alpha_bar()[20]), float(schedule.one_minus_alpha_bar()[20])
    left = rest * VARIANCE / (abar * VARIANCE + rest)
    for noise in (10.0, 1e-3):
        mean, found = guided(noise, 20)
        bayes = left * (MAP.T @ (Y - MAP @ mean)) / noise**2
        along = MAP @ bayes
        length = min(1.0, (Y - MAP @ mean) @ along / (along @ along))
        assert (length == 1.0) == (noise == 10.0)
        np.testing.assert_allclose(found - mean, length * bayes, rtol=1e-3, atol=1e-5)


SIDE = 8


@pytest.mark.parametrize("kind", ["inpainting", *slow("super-resolution")])
def test_guidance_by_a_point_estimate_does_not_run_away(kind: str) -> None:
    """Images of 8 x 8 with correlated pixels, seen in part or as means of squares, sharply."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2), -1).reshape(-1, 2)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    covariance = np.exp(-distance / 3) + 1e-3 * np.eye(SIDE**2)
    matrix = np.eye(SIDE**2)[rng.permutation(SIDE**2)[:40]]
    if kind == "super-resolution":
        corner = (places[:, 0] // 2) * (SIDE // 2) + places[:, 1] // 2
        matrix = (corner == np.arange(SIDE**2 // 4)[:, None]) / 4.0
    truth = np.linalg.cholesky(covariance) @ rng.normal(size=SIDE**2)
    y = matrix @ truth + 0.02 * rng.normal(size=len(matrix))

    def program(y=None):
        x = numpyro.sample("x", normal_model(log_linear(40), np.zeros(SIDE**2), covariance)())
        numpyro.sample("y", dist.Normal(matrix @ x, 0.02).to_event(1), obs=y)

    method = dp.Guidance(dp.twists.PointEstimate())
    x = run(program, method, num_samples=50, y=jnp.asarray(y)).get_samples()["x"]
    assert np.all(np.isfinite(x))
    assert np.sqrt(np.mean(np.square(x))) < 2 * np.sqrt(np.mean(truth**2))
    residual = np.asarray(x) @ matrix.T - y
    assert np.sqrt(np.mean(residual**2)) < 0.2  # of data with a standard deviation of 1


# Split Gibbs -------------------------------------------------------------------------------------

MANY = np.random.default_rng(0).normal(size=(40, 3))
MANY_Y = MANY @ np.array([1.0, 0.0, -1.0]) + np.linspace(-2, 2, 40)


def split_moments(method, schedule, matrix, noise, y) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_0 after every sweep, but for the final step, which is not felt."""
    lowest = int(method.lowest(Target(BoundProgram(linear(matrix, noise), (jnp.asarray(y),)))))
    precision = matrix.T @ np.diag(noise**-2.0) @ matrix
    mean, covariance = np.zeros(3), np.zeros((3, 3))
    falling = (method.num_sweeps + 1) // 2
    down = np.linspace(schedule.num_steps, lowest, falling).round().astype(int)
    for t in [*down, *[lowest] * (method.num_sweeps - falling)]:
        apart = float(np.exp(-schedule.log_snr()[t]))
        spread = np.linalg.inv(np.eye(3) / apart + precision)
        mean = spread @ (mean / apart + matrix.T @ (y / noise**2))
        covariance = spread @ covariance @ spread.T / apart**2 + spread
        keep = VARIANCE / (VARIANCE + apart)
        mean = keep * mean + (1 - keep) * MEAN
        covariance = keep[:, None] * covariance * keep + np.diag(keep * apart)
    return mean, covariance


@pytest.mark.parametrize(
    "case", [*slow((MANY, np.full(40, 2.0), MANY_Y)), (MAP, NOISE, Y)], ids=["many", "few"]
)
def test_split_gibbs_follows_its_recursion(case) -> None:
    matrix, noise, y = case
    method = dp.SplitGibbs()
    x = run(linear(matrix, noise), method, y=jnp.asarray(y)).get_samples()["x"]
    assert_moments(x, *split_moments(method, log_linear(60), matrix, noise, y))


def test_split_gibbs_nears_the_truth() -> None:
    mean, covariance, _ = oracles.linear_gaussian_posterior(
        MEAN, np.diag(VARIANCE), Y, MAP, np.diag(NOISE**2)
    )

    def miss(num_sweeps: int, noise_share: float = 0.25) -> float:
        method = dp.SplitGibbs(num_sweeps, noise_share)
        found, spread = split_moments(method, log_linear(60), MAP, NOISE, Y)
        assert np.all(np.diag(spread) > np.diag(covariance))
        return np.max(np.abs(found - mean) / np.sqrt(np.diag(covariance)))

    assert 0.05 < miss(50) < 0.15  # in posterior standard deviations, by the defaults
    assert miss(2_000, 0.05) < 0.02
    assert miss(2_000, 2.0) > 0.05  # the copies' own noise, which sweeps do not mend


@pytest.mark.slow
def test_split_gibbs_spreads_over_what_is_not_seen() -> None:
    """Two normals with a correlation of 0.9, one of them seen: more sweeps come nearer."""
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    mean, truth, _ = oracles.linear_gaussian_posterior(
        np.zeros(2), covariance, np.ones(1), np.array([[1.0, 0.0]]), np.array([[0.05**2]])
    )

    def program(y=None):
        x = numpyro.sample("x", normal_model(log_linear(50), np.zeros(2), covariance)())
        numpyro.sample("y", dist.Normal(x[0], 0.05), obs=y)

    num = 4_000

    def hidden(num_sweeps: int) -> tuple[float, float]:
        posterior = dp.Posterior(
            program,
            dp.SplitGibbs(num_sweeps),
            num_chains=1,
            num_samples=num,
            progress_bar=False,
        )
        posterior.run(jax.random.key(0), y=1.0)
        x = np.asarray(posterior.get_samples()["x"][:, 1], np.float64)
        return (x.mean() - mean[1]) / np.sqrt(truth[1, 1]), x.std() / np.sqrt(truth[1, 1])

    offs, ratios = zip(*map(hidden, (50, 1_500)), strict=True)
    assert offs[0] < -0.3  # the figures of the docstring
    assert ratios[0] > 1.1
    assert_within_standard_errors(offs[1], 0.0, 1 / np.sqrt(num))
    assert abs(ratios[1] - 1) < 0.03 + 4 / np.sqrt(2 * num)


def test_split_gibbs_ends_at_a_share_of_the_sharpest_noise() -> None:
    schedule, pick = log_linear(60), np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    target = Target(BoundProgram(linear(pick, np.array([0.6, 0.5])), (jnp.zeros(2),)))
    noise_to_signal = np.exp(-0.5 * np.asarray(schedule.log_snr()))
    for share in (0.2, 1.0):
        level = int(dp.SplitGibbs(50, share).lowest(target))
        assert noise_to_signal[level] <= share * 0.3 < noise_to_signal[level + 1]
    assert int(dp.SplitGibbs(50, 1e-6).lowest(target)) == 1


@pytest.mark.slow
def test_split_gibbs_honours_exact_observations() -> None:
    posterior = run(pair(log_linear(60), 0.9), dp.SplitGibbs(noise_share=0.15), y=3.0)
    known, unknown = (np.asarray(posterior.get_samples()["x"]).T - [[0], [1]]) / [[1], [2]]
    assert set(known) == {3.0}
    assert abs(unknown.mean() - 0.9) < 0.05
    assert abs(unknown.var() - 0.19) < 0.04


def counts(y=None):
    x = numpyro.sample("x", normal_model(log_linear(60), np.zeros(2), np.ones(2))())
    numpyro.sample("y", dist.Poisson(jnp.exp(1 + x[0])), obs=y)
    numpyro.factor("sharp", -0.5 * (x[1] - 0.5) ** 2 / 0.01**2)  # its gradient would overshoot


@pytest.mark.slow
def test_split_gibbs_beyond_linear_observations() -> None:
    x = run(counts, dp.SplitGibbs(200), y=jnp.array(6)).get_samples()["x"]
    grid = np.linspace(-4, 4, 4_001)
    density = scipy.stats.norm.pdf(grid) * scipy.stats.poisson(np.exp(1 + grid)).pmf(6)
    mean = np.sum(grid * density) / np.sum(density)
    deviation = np.sqrt(np.sum((grid - mean) ** 2 * density) / np.sum(density))
    assert abs(float(x[:, 0].mean()) - mean) < 0.1 * deviation
    assert 0.9 < float(x[:, 0].std()) / deviation < 1.15
    apart = 0.155  # noise to signal at the lowest level
    assert abs(float(x[:, 1].mean()) - 0.5) < 0.5 * apart
    assert float(x[:, 1].std()) < 2.5 * apart


def distance_from_the_center(y=None):
    x = numpyro.sample("x", normal_model(log_linear(60), np.zeros(2), np.ones(2))())
    numpyro.sample("y", dist.Normal(jnp.sqrt(jnp.sum(x**2)), 0.2), obs=y)


@pytest.mark.slow
def test_split_gibbs_where_the_center_has_no_slope() -> None:
    x = run(distance_from_the_center, dp.SplitGibbs(100), y=1.5).get_samples()["x"]
    grid = np.linspace(0, 5, 2_001)
    density = grid * np.exp(-0.5 * grid**2) * scipy.stats.norm.pdf(1.5, grid, 0.2)
    mean = np.sum(grid * density) / np.sum(density)
    found = np.linalg.norm(np.asarray(x), axis=-1)
    assert np.all(np.isfinite(found))
    assert abs(found.mean() - mean) < 0.1
    assert_mean(x, [0.0, 0.0])


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_conjugate_gradients_do_not_mind_the_scale(scale: float) -> None:
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(400, 300)) / 20
    matrix, vector = scale * (factor @ factor.T + np.eye(400)), rng.normal(size=400)
    found = conjugate_gradients(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(vector))
    np.testing.assert_allclose(matrix @ np.asarray(found), vector, atol=1e-3)
    assert not conjugate_gradients(lambda v: v, jnp.zeros(3)).any()


# What no method is given, and what comes of it --------------------------------------------------


def chosen(program, **data) -> tuple[type, str]:
    found = choose(Target(BoundProgram(program, (), data)), 4)
    return type(found.method), found.reason


def test_the_choice_is_explained() -> None:
    def seen(size, num, scale=None):
        def program(y=None):
            x = numpyro.sample("x", normal_model(log_linear(4), np.zeros(size), np.ones(size))())
            sigma = numpyro.sample("sigma", dist.HalfNormal()) if scale is None else scale
            numpyro.sample("y", dist.Normal(x[:num], sigma).to_event(1), obs=y)

        return program

    for program, num, method, reason in (
        (seen(2, 2, 0.1), 2, dp.TwistedSMC, "x has 2 numbers: few enough"),
        (seen(40, 32, 0.1), 32, dp.TwistedSMC, r"few numbers are observed \(32\)"),
        (seen(40, 33, 0.1), 33, dp.TwistedSMC, r"many numbers are observed \(33\)"),
        (seen(1_100, 1_025, 0.1), 1_025, dp.TwistedSMC, "an isotropic covariance"),
        (seen(12, 3), 3, dp.TwistedSMC, "the latents are rejuvenated"),
        (seen(20_001, 5, 0.1), 5, dp.SplitGibbs, "x has 20,001 numbers"),
        (seen(20_001, 5), 5, dp.TwistedSMC, "few numbers"),
    ):
        found, why = chosen(program, y=jnp.zeros(num))
        assert found is method
        assert re.search(reason, why)


@pytest.mark.slow
def test_a_posterior_without_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    posterior = run(seen_once(dp.schedules.linear(20), 1.0), num_samples=100, y=3.0)
    assert getattr(posterior.method, "num_particles", 0) == 1_000
    posterior.print_summary()
    assert posterior.explanation != "the method was given"
    assert posterior.explanation in capsys.readouterr().out
    assert float(posterior.pareto_k.max()) < 0.7


@pytest.mark.slow
def test_no_evidence_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    posterior = run(
        seen_once(dp.schedules.linear(20), 1.0), dp.Guidance(), num_samples=50, num_chains=2, y=3.0
    )
    assert posterior.exactness is dp.Exactness.APPROXIMATE
    assert repr(posterior.log_evidence) == "none"
    assert np.isnan(posterior.pareto_k).all()
    assert posterior.num_denoiser_calls == 2 * 50 * 20
    posterior.print_summary()
    assert "log evidence: none" in capsys.readouterr().out
    idata = posterior.to_arviz()
    assert dict(idata["sample_stats"].sizes) == {"chain": 2, "draw": 50}
    assert np.isnan(idata["posterior"].attrs["log_evidence"])


def test_settings_are_shown_as_they_were_given() -> None:
    assert repr(dp.TwistedSMC(100)) == "TwistedSMC(num_particles=100)"
    assert repr(dp.SplitGibbs(noise_share=0.1)) == "SplitGibbs(noise_share=0.1)"
    method = dp.TwistedSMC(twist=dp.twists.Quadrature(kept=0.5), ess_threshold=0.3)
    assert repr(method) == "TwistedSMC(twist=Quadrature(kept=0.5), ess_threshold=0.3)"
    jax.eval_shape(lambda key: (repr(dp.TwistedSMC(9)), key)[1], jax.random.key(0))  # in a trace
