"""Categories whose number differs between coordinates, from the data to the draws."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import diffppl as dp

from . import oracles
from .registry import KNOWN
from .statistics import assert_within_standard_errors

KEY = jax.random.key(0)
COUNTS = (2, 4, 3)
BASES = {"uniform": dp.Uniform(), "absorbing": dp.Absorbing()}
NAMES = {"uniform": "categorical-counts", "absorbing": "categorical-counts-absorbing"}
RNG = np.random.default_rng(1)
# A table of three columns, of which the last two go together.
FIRST = RNG.choice(2, p=[0.3, 0.7], size=3_000)
SECOND = RNG.choice(4, p=[0.1, 0.2, 0.3, 0.4], size=3_000)
TABLE = np.stack([FIRST, SECOND, (SECOND + (RNG.uniform(size=3_000) < 0.2)) % 3], axis=1)


def make_process(base: str, num_steps: int = 20) -> dp.CategoricalDiffusion:
    return dp.CategoricalDiffusion(dp.schedules.reciprocal(num_steps), COUNTS, BASES[base])


def make_model(base: str) -> dp.DiffusionModel:
    process = make_process(base)
    network = dp.networks.MLP(
        (3,), width=32, depth=2, key=KEY, output_shape=(3, 4), num_categories=process.num_states
    )
    return dp.DiffusionModel(process, network, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_fitted_table_has_only_categories_that_there_are(base: str, tmp_path: Any):
    result = dp.fit(
        KEY,
        make_model(base),
        TABLE,
        num_iterations=400,
        batch_size=256,
        optimizer=optax.adam(5e-3),
        ema_decay=None,
        progress_bar=False,
    )
    draws = np.asarray(dp.sample(jax.random.key(1), result.model, (2_000,)))
    assert draws.dtype == result.model.process.dtype
    for column, count in enumerate(COUNTS):
        seen = np.bincount(draws[:, column], minlength=5)
        assert np.all(seen[count:] == 0)
        truth = np.bincount(TABLE[:, column], minlength=count) / len(TABLE)
        # Half of it is the network's error: 400 iterations are few.
        assert np.abs(seen[:count] / len(draws) - truth).max() < 0.06
    dp.save(tmp_path / "table.dppl", result.model)
    loaded = dp.load(tmp_path / "table.dppl")
    np.testing.assert_array_equal(dp.sample(jax.random.key(1), loaded, (2_000,)), draws)
    np.testing.assert_array_equal(loaded.process.counts, COUNTS)


@pytest.mark.parametrize("base", BASES)
def test_importance_bounds_are_between_the_bound_and_the_likelihood(base: str):
    known = KNOWN[f"listed-{NAMES[base]}"]
    model = known.model(dp.schedules.reciprocal(5))
    process = model.process
    data, states = (oracles.all_states(n, 3) for n in (4, process.num_states))
    log_prob = oracles.discrete_model_log_prob(model, states, data)
    seen = known.prior.states[1]
    (index,) = np.flatnonzero((data == seen).all(axis=1))
    x_0 = np.broadcast_to(seen, (200, 3))
    estimate = dp.importance_bound(KEY, model, x_0, num_particles=400)
    error = np.hypot(float(estimate.monte_carlo_error), 1e-4)
    assert_within_standard_errors(estimate.value, log_prob[index], error)


@pytest.mark.parametrize("base", BASES)
def test_padding_gets_no_gradient_and_nothing_gets_nan(base: str):
    model = make_model(base)
    process = model.process

    @eqx.filter_jit
    def slope(raw: Any) -> Any:
        def loss(raw: Any) -> Any:
            estimate = process.estimate_from_logits(raw)
            x_0, x_t = jnp.array([1, 3, 2]), process.base((3,)).sample(KEY)
            q, p = process.posterior(x_t, x_0, 7), process.reverse(x_t, estimate, 7)
            return jnp.sum(process.kl(q, p))

        return jax.grad(loss)(raw)

    for scale in (0.1, 100.0):
        gradient = slope(scale * jax.random.normal(KEY, (3, 4)))
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[0, 2:], 0.0)
        np.testing.assert_array_equal(gradient[2, 3:], 0.0)


@pytest.mark.parametrize("base", BASES)
def test_data_beyond_a_columns_own_categories_are_refused(base: str):
    model, wrong = make_model(base), TABLE.copy()
    wrong[5, 0] = 2  # a category of the others
    with pytest.raises(ValueError, match=r"support.*1 of 9,000 values \(2 at \[5, 0\]\)"):
        dp.elbo(KEY, model, wrong)
    with pytest.raises(ValueError, match="data has values outside the support"):
        dp.fit(KEY, model, dp.data.InMemory(wrong), num_iterations=1)


def test_networks_and_events_must_suit_the_numbers():
    process = make_process("absorbing")

    def model(states: Any, event_shape: tuple[int, ...] = (3,)) -> dp.DiffusionModel:
        network = dp.networks.MLP(
            event_shape, key=KEY, output_shape=(*event_shape, 4), num_categories=states
        )
        return dp.DiffusionModel(process, network, event_shape)

    assert model(5).num_steps == 20
    with pytest.raises(
        ValueError, match="made with num_categories=4, but .* 5 states.*categories=5"
    ):
        model(4)
    with pytest.raises(ValueError, match="made without num_categories.*num_categories=5"):
        model(None)
    with pytest.raises(ValueError, match=r"process.num_categories has shape \(3,\).*\(2,\)"):
        model(5, (2,))


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_posterior_is_that_of_the_enumeration(base: str):
    known = KNOWN[f"listed-{NAMES[base]}"]
    model = known.model(dp.schedules.reciprocal(10))
    table = jnp.array([0.1, 1.5, 3.0, -1.0])

    def program(y: Any = None) -> None:
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(table[x[1]] + x[2], 1.0), obs=y)

    states = oracles.all_states(4, 3)
    chain_states = oracles.all_states(model.process.num_states, 3)
    prior = np.exp(oracles.discrete_model_log_prob(model, chain_states, states))
    y = 0.4
    likelihood = np.exp(-0.5 * (y - (np.asarray(table)[states[:, 1]] + states[:, 2])) ** 2)
    likelihood /= np.sqrt(2 * np.pi)
    joint = prior * likelihood
    posterior = dp.Posterior(
        program, dp.TwistedSMC(num_particles=1_000), num_chains=4, progress_bar=False
    )
    posterior.run(KEY, y=y)
    evidence = posterior.log_evidence
    assert_within_standard_errors(evidence.value, np.log(joint.sum()), evidence.standard_error)
    draws = np.asarray(posterior.get_samples()["x"])
    assert np.all(draws < np.array(COUNTS))
    shares = np.bincount(draws[:, 1], minlength=4) / len(draws)
    truth = np.array([joint[states[:, 1] == k].sum() for k in range(4)]) / joint.sum()
    assert np.abs(shares - truth).max() < 4 * np.sqrt(0.25 / 400)
