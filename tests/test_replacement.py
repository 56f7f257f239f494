"""Replacement for every kind of data, against recursion and enumeration; what methods refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import diffppl as dp

from . import oracles
from .marks import slow
from .statistics import assert_counts, assert_moments
from .test_methods import levels, log_linear, normal_model, pair, run
from .test_perturbation import PROCESSES, counted, enumerated, listed_model, noisy_bits

# Real data ------------------------------------------------------------------------------------


def replaced_moments(schedule, correlation: float, num_repeats: int) -> tuple[float, float]:
    """Mean and variance of the unknown one, the known one being 1: linear, and never looking back.

    The known entry is drawn anew at every level, independently of all that was there.
    """
    covariance = np.array([[1.0, correlation], [correlation, 1.0]])
    (abar, noise, beta, *steps), mean, variance = levels(schedule), 0.0, 1.0
    for t in range(schedule.num_steps, 1, -1):
        b, c, v = (step[t] for step in steps)
        inverse = np.linalg.inv(abar[t] * covariance + noise[t] * np.eye(2))
        gain = np.sqrt(abar[t]) * covariance @ inverse
        left = (covariance - np.sqrt(abar[t]) * gain @ covariance)[1, 1]
        slope, pull = b * gain[1, 1] + c, b * gain[1, 0]
        for again in range(num_repeats):
            if again:
                mean, variance = np.sqrt(1 - beta[t]) * mean, (1 - beta[t]) * variance + beta[t]
            mean = slope * mean + pull * np.sqrt(abar[t])
            variance = slope**2 * variance + pull**2 * noise[t] + v + b**2 * left
    return np.sqrt(1 - beta[1]) * mean, (1 - beta[1]) * variance + beta[1]


@pytest.mark.parametrize("num_repeats", [10, *slow(1)])
def test_replacement_follows_its_recursion(num_repeats: int) -> None:
    schedule = log_linear(40)
    posterior = run(pair(schedule, 0.9), dp.Replacement(num_repeats), y=3.0)
    x = posterior.get_samples()["x"]
    assert set(np.asarray(x[:, 0])) == {3.0}
    mean, variance = replaced_moments(schedule, 0.9, num_repeats)
    assert_moments((x[:, 1:] - 1) / 2, [mean], [[variance]])


def test_repeats_come_closer_to_the_truth() -> None:
    """Means and variances that the docstring has; the truth is 0.9 and 0.19, or 0.5 and 0.75."""
    schedule = dp.schedules.reciprocal(1_000)
    for (correlation, num_repeats), known in {
        (0.9, 1): (0.62, 0.31),
        (0.5, 1): (0.27, 0.82),
        (0.9, 10): (0.88, 0.20),
        (0.5, 10): (0.46, 0.76),
    }.items():
        found = replaced_moments(schedule, correlation, num_repeats)
        np.testing.assert_allclose(found, known, atol=0.006)


# Bits and categories -----------------------------------------------------------------------

KNOWN = np.array([1, 0])  # of the first and the last coordinate


def two_known(process):
    def program(y=None):
        x = numpyro.sample("x", listed_model(process)())
        numpyro.sample("y", dist.Delta(x[jnp.array([0, 2])], event_dim=1), obs=y)

    return program


@pytest.mark.parametrize("name", ["bernoulli", *slow("absorbing", "uniform")])
def test_replacement_of_known_entries(name: str) -> None:
    process, num_states = PROCESSES[name]

    def known(table: np.ndarray, t: int) -> np.ndarray:
        """Known entries are drawn from q(x_t | x_0), whatever the kernel says."""
        x_0 = jnp.array([KNOWN[0], 0, KNOWN[1]])[None]
        if t == 0:
            noised = np.asarray(jax.nn.one_hot(x_0, table.shape[1])).swapaxes(1, 2)
        else:
            noised = np.asarray(oracles.kernel_table(process.marginal(x_0, t), range(num_states)))
        table = table.copy()
        table[:, :, [0, 2]] = noised[:, :, [0, 2]]
        return table

    events, truth = enumerated(name, known)
    posterior = run(two_known(process), dp.Replacement(), y=jnp.asarray(KNOWN))
    x = posterior.get_samples()["x"]
    np.testing.assert_array_equal(x[:, [0, 2]], np.broadcast_to(KNOWN, (len(x), 2)))
    assert_counts(counted(posterior, events), truth)


# What is refused -----------------------------------------------------------------------------

NORMAL = normal_model(log_linear(4), np.zeros(2), np.ones(2))


def noisy(y=None):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", NORMAL()), 0.1).to_event(1), obs=y)


def unknown_noise(y=None):
    x, sigma = numpyro.sample("x", NORMAL()), numpyro.sample("sigma", dist.HalfNormal())
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


def unknown_shift(y=None):
    x = numpyro.sample("x", NORMAL())
    shift = numpyro.sample("shift", dist.Normal())
    numpyro.factor("near", -0.5 * shift**2)
    numpyro.sample("y", dist.Delta(x, event_dim=1), obs=y)


def both(y=None):
    x = numpyro.sample("x", NORMAL())
    numpyro.sample("y", dist.Delta(x, event_dim=1), obs=y)
    numpyro.sample("z", dist.Normal(x[0], 0.1), obs=0.3)


def exact(y=None):
    numpyro.sample("y", dist.Delta(numpyro.sample("x", NORMAL()), event_dim=1), obs=y)


def masked_states(y=None):
    x = numpyro.sample("x", listed_model(PROCESSES["absorbing"][0])())
    numpyro.sample("y", dist.Bernoulli(jnp.where(x == 1, 0.9, 0.2)).to_event(1), obs=y)


def real_and_bits(y=None):
    x = numpyro.sample("x", NORMAL())
    bits = numpyro.sample("bits", listed_model(PROCESSES["bernoulli"][0])())
    numpyro.sample("y", dist.Normal(x + bits[0], 0.1).to_event(1), obs=y)


PERTURBATION = dp.twists.Perturbation()


@pytest.mark.parametrize(
    ("program", "method", "message"),
    [
        (unknown_noise, dp.Guidance(), r"Guidance\(\) .*site 'sigma'; use TwistedSMC"),
        (unknown_noise, dp.SplitGibbs(), r"SplitGibbs\(\) .*site 'sigma'; use TwistedSMC"),
        (unknown_shift, dp.Replacement(), r"Replacement\(\) .*site 'shift'; use TwistedSMC"),
        (noisy, dp.Replacement(), "site 'y' is noisy; use TwistedSMC"),
        (both, dp.Replacement(), "site 'z' is noisy; use TwistedSMC"),
        (noisy_bits, dp.SplitGibbs(), "site 'x' has BernoulliDiffusion; use TwistedSMC"),
        (exact, dp.Guidance(PERTURBATION), "site 'y' is an observed Delta; use twist=Moment"),
        (exact, dp.TwistedSMC(4, twist=PERTURBATION), "site 'y' is an observed Delta"),
        (masked_states, dp.Guidance(PERTURBATION), "site 'x' has an absorbing state"),
        (real_and_bits, dp.Guidance(PERTURBATION), "real data or states, but not both"),
        (noisy, dp.Guidance(dp.twists.ExpectedLikelihood()), "site 'x', whose data are real"),
    ],
)
def test_what_a_method_refuses(program, method, message: str) -> None:
    y = jnp.ones(3, int) if program in (noisy_bits, masked_states) else jnp.ones(2)
    with pytest.raises(ValueError, match=message):
        run(program, method, num_samples=4, y=y)


def test_bad_settings() -> None:
    for make, message in (
        (lambda: dp.Replacement(0), "num_repeats=0 must be a whole number, 1"),
        (lambda: dp.SplitGibbs(1), "num_sweeps=1 must be a whole number, 2 or more"),
        (lambda: dp.SplitGibbs(noise_share=0.0), "noise_share=0.0 must be more than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
