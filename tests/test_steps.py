"""Which steps and which data an estimate of the bound visits, and how many at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp
from diffppl.likelihood import elbo as objectives
from diffppl.likelihood.elbo import stratified_indices

from .marks import slow
from .statistics import assert_mean


def normal_model():
    process = dp.GaussianDiffusion(dp.schedules.log_snr_linear(8))
    network = dp.denoisers.Gaussian(process.schedule, jnp.array([0.3, -1.0]), 0.5)
    return dp.DiffusionModel(process, network, event_shape=(2,))


@pytest.mark.parametrize("at_once", [1, 4, 7, 100])
def test_all_steps_are_the_terms_one_by_one(monkeypatch, at_once):
    # 7 steps, at most 4 at once, are two blocks of 4, one of them with a step that does not count.
    n, key = 5, jax.random.key(0)
    monkeypatch.setattr(objectives, "BLOCK_SIZE", at_once * n * 2)
    model = normal_model()
    x_0 = jax.random.normal(jax.random.key(1), (n, 2))
    term = jax.jit(
        jax.vmap(lambda k, x, t: objectives.step_term(k, model, x, t, None), (0, 0, None))
    )
    terms = np.array(
        [
            term(jax.random.split(key_t, n), x_0, jnp.array(t))
            for t, key_t in zip(range(2, 9), jax.random.split(key, 7), strict=True)
        ]
    )
    totals, per_step = eqx.filter_jit(lambda *args: dp.AllSteps().sum_terms(*args))(
        key, model, x_0, None
    )
    np.testing.assert_allclose(totals, terms.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(per_step, terms.mean(axis=1), rtol=1e-5)


def test_sampled_steps_are_the_same_a_few_at_a_time(monkeypatch):
    model = normal_model()
    x_0, key = jax.random.normal(jax.random.key(1), (5, 2)), jax.random.key(0)
    found = []
    for at_once in (1, 14, 1_000):  # 15 visits: 5, 7 or all of them together
        monkeypatch.setattr(objectives, "BLOCK_SIZE", at_once)
        sum_terms = eqx.filter_jit(lambda *args: dp.SampledSteps(3).sum_terms(*args))
        found.append(sum_terms(key, model, x_0, None))
    for totals, per_step in found[:-1]:
        np.testing.assert_allclose(totals, found[-1][0], rtol=1e-5)
        np.testing.assert_allclose(per_step, found[-1][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [dp.AllSteps(), dp.SampledSteps(2)])
@pytest.mark.parametrize("batch_size", [4, *slow(5, 11)])
def test_a_bound_is_that_of_its_blocks(steps, batch_size):
    process = dp.GaussianDiffusion(dp.schedules.log_snr_linear(8))
    inner = dp.networks.MLP((2,), 8, 1, context_shape=(1,), key=jax.random.key(3))
    model = dp.DiffusionModel(process, inner, event_shape=(2,), context_shape=(1,))
    x_0, context = np.split(np.random.default_rng(0).normal(size=(12, 3)), [2], axis=1)
    context[5:] += 3.0
    found = dp.elbo(
        jax.random.key(0), model, x_0, context=context, steps=steps, batch_size=batch_size
    )
    length = {4: 4, 5: 4, 11: 6}[batch_size]  # equal blocks, no longer than was asked for
    num = 12 // length
    keys = jax.random.split(jax.random.key(0), num + 1)
    parts = [
        eqx.filter_jit(objectives.bound)(key, model, jnp.asarray(x), jnp.asarray(c), steps)
        for key, x, c in zip(keys, np.split(x_0, num), np.split(context, num), strict=False)
    ]
    np.testing.assert_allclose(
        found.per_example, np.concatenate([part.per_example for part in parts]), rtol=1e-4
    )
    np.testing.assert_allclose(found.prior + found.terms.sum(), found.value, rtol=1e-5)


def test_blocks_that_do_not_come_out_even_leave_a_rest():
    model = normal_model()
    x_0 = np.random.default_rng(0).normal(size=(2_003, 2))
    found, whole = (
        dp.elbo(jax.random.key(0), model, x_0, batch_size=size) for size in (1_000, 3_000)
    )
    assert found.per_example.shape == (2_003,)
    np.testing.assert_allclose(found.prior + found.terms.sum(), found.value, rtol=1e-5)
    np.testing.assert_allclose(found.prior, whole.prior, rtol=1e-5)
    assert_mean(np.asarray(found.per_example) - np.asarray(whole.per_example), 0.0)
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        dp.elbo(jax.random.key(0), model, x_0, batch_size=0)


def test_steps_are_visited_evenly():
    whole = np.asarray(stratified_indices(jax.random.key(0), 50, 1, 10))
    assert whole.shape == (50, 1)
    np.testing.assert_array_equal(np.bincount(whole.ravel()), np.full(10, 5))
    rows = np.asarray(stratified_indices(jax.random.key(1), 50, 5, 10))
    np.testing.assert_array_equal(np.sort(rows // 2, axis=1), np.tile(np.arange(5), (50, 1)))
    np.testing.assert_array_equal(np.bincount(rows.ravel()), np.full(10, 25))


def test_at_least_one_step_is_visited():
    with pytest.raises(ValueError, match="num=0 must be a whole number, 1 or more"):
        dp.SampledSteps(0)
