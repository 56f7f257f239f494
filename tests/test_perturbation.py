"""The paper's own rule: what it samples without weights, and that weights make it consistent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import diffppl as dp

from . import oracles
from .marks import slow
from .statistics import assert_counts, assert_mean, assert_moments, assert_within_standard_errors
from .test_methods import levels, run, seen_once

# Real data --------------------------------------------------------------------------------

POWERS = {
    "constant": (dp.twists.ConstantPower(), lambda t, num_steps: 1.0),
    "linear": (dp.twists.LinearPower(), lambda t, num_steps: 1 - t / num_steps),
}


def perturbed_moments(schedule, power, noise: float) -> tuple[float, float]:
    """Mean and variance of x_0 ~ N(0, 1), every kernel moved by its variance times the gradient."""
    beta, mean, variance = levels(schedule).beta, 0.0, 1.0
    for t in range(schedule.num_steps, 0, -1):
        pull = beta[t] * power(t - 1, schedule.num_steps) / noise**2
        slope = np.sqrt(1 - beta[t]) * (1 - pull)
        mean, variance = slope * mean + pull, slope**2 * variance + beta[t]
    return mean, variance


@pytest.mark.parametrize(
    ("noise", "power", "known"),
    [
        (1.0, "constant", (0.6665, 0.3337)),
        (0.5, "constant", (0.8889, 0.1114)),
        (2.0, "constant", (0.3318, 0.6671)),
        (1.0, "linear", (0.462, 0.433)),
        (0.5, "linear", (0.849, 0.125)),
        (2.0, "linear", (0.151, 0.787)),
    ],
)
def test_the_paper_s_rule_in_a_thousand_steps(noise, power, known) -> None:
    """Known for kernels multiplied by r in closed form; here they are moved by its gradient."""
    found = perturbed_moments(dp.schedules.reciprocal(1_000), POWERS[power][1], noise)
    np.testing.assert_allclose(found, known, atol=2e-3)


@pytest.mark.parametrize("name", ["constant", *slow("linear")])
def test_perturbed_guidance_follows_its_recursion(name: str) -> None:
    power, a = POWERS[name]
    schedule = dp.schedules.linear(60)
    posterior = run(seen_once(schedule, 0.7), dp.Guidance(dp.twists.Perturbation(power)), y=3.0)
    x = (posterior.get_samples()["x"] - 1) / 2
    mean, variance = perturbed_moments(schedule, a, 0.7)
    assert_moments(x, [mean], [[variance]])


@pytest.mark.slow
def test_weights_make_the_paper_s_rule_consistent() -> None:
    method = dp.TwistedSMC(1_000, twist=dp.twists.Perturbation())
    program = seen_once(dp.schedules.linear(60), 1.0)
    posterior = run(program, method, num_samples=1_000, num_chains=8, y=3.0)
    x = (np.asarray(posterior.get_samples(group_by_chain=True)["x"][..., 0]) - 1) / 2
    assert_mean(x.mean(1), 0.5, num=4.5)
    assert_mean(((x - 0.5) ** 2).mean(1), 0.5, num=4.5)
    value, error = posterior.log_evidence
    truth = scipy.stats.norm(1.0, np.sqrt(8)).logpdf(3.0)
    assert_within_standard_errors(value, truth, error)


# Bits, by enumeration ------------------------------------------------------------------------

STATES = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
STATE_WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
SCHEDULE = dp.schedules.reciprocal(30)
PROCESSES = {
    "bernoulli": (dp.BernoulliDiffusion(SCHEDULE, jnp.array([0.6, 0.5, 0.4])), 2),
    "uniform": (dp.CategoricalDiffusion(SCHEDULE, 3), 3),
    "absorbing": (dp.CategoricalDiffusion(SCHEDULE, 3, dp.Absorbing()), 4),
}


def listed_model(process) -> dp.DiffusionModel:
    states = STATES + np.array([0, process.num_categories is not None, 0])
    network = dp.denoisers.Enumerated(process, states, STATE_WEIGHTS)
    return dp.DiffusionModel(process, network, (3,))


def enumerated(name: str, change) -> tuple[np.ndarray, np.ndarray]:
    """Every x_0, and its probability where `change(table, t)` is made of each step.

    `table[now, next, i]` has the probabilities of coordinate i; the start is at t = T.
    """
    process, num_states = PROCESSES[name]
    model, num_steps = listed_model(process), SCHEDULE.num_steps
    states = oracles.all_states(num_states, 3)
    events = oracles.all_states(process.num_categories or 2, 3)
    every = jnp.asarray(states)

    @jax.jit
    def tables() -> Any:
        def reverse(t: Any) -> Any:
            kernel = process.reverse(every, model.estimate(every, t), t)
            return oracles.kernel_table(kernel, range(num_states))

        edge = process.final_step(every, model.estimate(every, 1))
        base = oracles.kernel_table(process.base((1, 3)), range(num_states))
        steps = jax.lax.map(reverse, jnp.arange(num_steps, 1, -1))
        return base, steps, oracles.kernel_table(edge, range(process.num_categories or 2))

    base, steps, edge = (np.asarray(table, np.float64) for table in tables())

    def joint(table: np.ndarray, to: np.ndarray) -> np.ndarray:
        return np.prod([table[:, to[:, i], i] for i in range(3)], axis=0)

    p = joint(change(base, num_steps), states)
    for t, table in zip(range(num_steps, 1, -1), steps, strict=True):
        p = p @ joint(change(table, t - 1), states)
    return events, (p @ joint(change(edge, 0), events))[0]


def counted(posterior: dp.Posterior, events: np.ndarray) -> np.ndarray:
    x = posterior.get_samples()["x"]
    return np.asarray((x[:, None, :] == events).all(-1).sum(0))


RATES, PAIR = np.array([0.2, 0.85]), 0.8


def noisy_bits(y=None):
    x = numpyro.sample("x", listed_model(PROCESSES["bernoulli"][0])())
    numpyro.sample("y", dist.Bernoulli(jnp.asarray(RATES)[x]).to_event(1), obs=y)
    numpyro.factor("pair", PAIR * x[0] * x[2])


SEEN = np.array([1, 1, 0])


def likelihood(x: np.ndarray) -> np.ndarray:
    return np.where(SEEN == 1, RATES[x], 1 - RATES[x]).prod(-1) * np.exp(
        PAIR * x[..., 0] * x[..., 2]
    )


def perturbed(table: np.ndarray, t: int) -> np.ndarray:
    """c_i d_i / (c_i d_i + (1 - c_i)(1 - d_i)), the other bits as they are."""
    if t == SCHEDULE.num_steps:
        return table
    now = oracles.all_states(2, 3)
    tilted = np.zeros_like(table)
    for i in range(3):
        for k in range(2):
            set_to = now.copy()
            set_to[:, i] = k
            tilted[:, k, i] = table[:, k, i] * likelihood(set_to)
    return tilted / tilted.sum(1, keepdims=True)


def test_the_paper_s_rule_for_bits() -> None:
    events, biased = enumerated("bernoulli", perturbed)
    np.testing.assert_allclose(biased.sum(), 1, rtol=1e-5)
    posterior = run(noisy_bits, dp.Guidance(dp.twists.Perturbation()), y=jnp.asarray(SEEN))
    assert_counts(counted(posterior, events), biased)
    _, prior = enumerated("bernoulli", lambda table, t: table)
    truth = prior * likelihood(events)
    distance = 0.5 * np.abs(biased - truth / truth.sum()).sum()
    print(distance)
    assert 0.1 < distance < 0.3  # what dropping the normalisers costs


@pytest.mark.slow
def test_weights_make_the_paper_s_rule_for_bits_consistent() -> None:
    method = dp.TwistedSMC(1_000, twist=dp.twists.Perturbation())
    posterior = run(noisy_bits, method, num_samples=1_000, num_chains=8, y=jnp.asarray(SEEN))
    events, prior = enumerated("bernoulli", lambda table, t: table)
    truth = prior * likelihood(events)
    likely = truth > 0.02 * truth.sum()
    x = posterior.get_samples(group_by_chain=True)["x"]
    shares = (x[:, :, None, :] == events[likely]).all(-1).mean(1)
    assert_mean(shares, truth[likely] / truth.sum(), num=4.5)
    value, error = posterior.log_evidence
    assert_within_standard_errors(value, np.log(truth.sum()), error)
