"""The adapter: a model, called, is a NumPyro distribution like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import Predictive

import diffppl as dp
from diffppl.model.distribution import DiffusionDistribution
from diffppl.samplers import ancestral

from . import registry
from .statistics import assert_mean, assert_moments

KEY = jax.random.key(7)


class Shifted(dp.denoisers.AbstractDenoiser):
    """E[x_0 | x_t] and Var[x_0 | x_t] for x_0 ~ N(context, 0.25), coordinate by coordinate."""

    schedule: dp.schedules.AbstractSchedule

    def __call__(self, x_t, t, context):
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        a, ratio = jnp.sqrt(alpha_bar), 0.25 / (alpha_bar * 0.25 + noise)
        mean = context + a * ratio * (x_t - a * context)
        return jnp.stack([mean, jnp.full_like(mean, jnp.log(ratio))])


def shifted_model():
    schedule = dp.schedules.cosine(24)
    process = dp.GaussianDiffusion(schedule)
    return dp.DiffusionModel(
        process, Shifted(schedule), (2,), scaling=dp.Scaling(3.0, 2.0), context_shape=(2,)
    )


MODELS = {
    "gaussian": registry.KNOWN["gaussian"].model(dp.schedules.cosine(6)),
    "bits": registry.KNOWN["listed-bernoulli"].model(dp.schedules.reciprocal(4)),
    "context": shifted_model(),
}
CONTEXT = jnp.array([[1.0, -2.0], [0.0, 4.0], [3.0, 3.0]])


def make(name):
    return MODELS[name](CONTEXT if name == "context" else None)


@pytest.mark.parametrize("name", ["bits", "context"])
def test_it_survives_every_way_through_jax(name):
    d = make(name)
    leaves, structure = jax.tree.flatten(d)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, DiffusionDistribution)
    assert (again.batch_shape, again.event_shape) == (d.batch_shape, d.event_shape)
    draw = jax.jit(lambda d: d.sample(KEY, (3,)))
    x = draw(d)
    assert x.shape == (3, *d.batch_shape, *d.event_shape)
    np.testing.assert_array_equal(draw(again), x)
    # Returned from jit, carried by scan, mapped over.
    np.testing.assert_array_equal(draw(jax.jit(lambda d: d)(d)), x)
    carried, _ = jax.lax.scan(lambda d, _: (d, None), d, None, length=2)
    np.testing.assert_array_equal(draw(carried), x)
    mapped = jax.jit(jax.vmap(lambda d, key: d.sample(key, (3,)), in_axes=(None, 0)))(d, KEY[None])
    np.testing.assert_allclose(mapped[0], x, rtol=1e-5)


def test_mapping_over_distributions_maps_over_contexts():
    model = MODELS["context"]
    many = jax.vmap(model)(CONTEXT)
    keys = jax.random.split(KEY, 3)
    x = jax.jit(jax.vmap(lambda d, key: d.sample(key)))(many, keys)
    one = jax.jit(model(CONTEXT[1]).sample)(keys[1])
    np.testing.assert_allclose(x[1], one, rtol=1e-5)


def test_draws_are_those_of_the_chain_in_the_users_units():
    model = MODELS["context"]
    x = jax.jit(lambda: model(CONTEXT).sample(KEY, (1_000,)))()
    chain = jax.jit(lambda: ancestral(KEY, model, (1_000, 3), CONTEXT))()
    np.testing.assert_allclose(x, 3 + 2 * chain, rtol=1e-5)
    # Data N(context, 1/4) in the chain's units.
    for values in (x, dp.sample(KEY, model, (1_000,), context=CONTEXT)):
        assert_mean(values, 3 + 2 * CONTEXT)


def test_its_shapes_and_supports_are_numpyros():
    gaussian, bits, context = (make(name) for name in MODELS)
    assert (gaussian.batch_shape, gaussian.event_shape) == ((), (2,))
    assert (context.batch_shape, context.event_shape) == ((3,), (2,))
    assert bits.is_discrete
    assert bits.support.is_discrete
    assert not gaussian.is_discrete
    assert bool(bits.support(jnp.array([0, 1, 1])))
    assert not bool(bits.support(jnp.array([0, 1, 2])))
    assert gaussian.support(jnp.zeros((5, 2))).shape == (5,)
    wide = gaussian.expand((4,))
    assert wide.sample(KEY).shape == (4, 2)
    assert not np.array_equal(wide.sample(KEY)[0], wide.sample(KEY)[1])


@pytest.mark.slow
def test_log_prob_is_the_density_of_the_flow():
    schedule = MODELS["context"].process.schedule
    noise = float(schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1])
    exact = scipy.stats.norm(3 + 2 * np.asarray(CONTEXT), 2 * np.sqrt(0.25 + noise))
    d = make("context")
    value = jnp.array([[5.5, -2.0], [3.0, 10.0], [8.0, 9.0]])
    log_prob = jax.jit(lambda d, x: d.log_prob(x))(d, value)
    np.testing.assert_allclose(log_prob, exact.logpdf(value).sum(-1), atol=0.01)
    # One value against three contexts.
    spread = jax.jit(lambda d, x: d.log_prob(x))(d, value[0])
    assert spread.shape == (3,)
    np.testing.assert_allclose(spread[0], log_prob[0], atol=1e-4)
    with pytest.raises(NotImplementedError, match="BernoulliDiffusion has no log_prob"):
        make("bits").log_prob(jnp.zeros(3, int))


def test_programs_hold_it_like_any_other():
    def program():
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", MODELS["context"](CONTEXT))
            b = numpyro.sample("b", MODELS["bits"]())
        numpyro.sample("y", dist.Normal(x.sum() + b.sum(), 1.0))

    sites = trace(seed(program, KEY)).get_trace()
    assert sites["x"]["value"].shape == (3, 2)
    assert sites["b"]["value"].shape == (3, 3)
    draws = Predictive(program, num_samples=5)(jax.random.key(1))
    assert draws["x"].shape == (5, 3, 2)
    assert draws["b"].shape == (5, 3, 3)
    assert not np.array_equal(draws["b"][:, 0], draws["b"][:, 1])
    fixed = {"x": jnp.ones((3, 2))}
    sites = trace(substitute(seed(program, KEY), data=fixed)).get_trace()
    np.testing.assert_array_equal(sites["x"]["value"], fixed["x"])


def test_programs_with_real_data_are_drawn():
    def program():
        x = numpyro.sample("x", MODELS["gaussian"]())
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.3)

    graph = numpyro.render_model(program, render_distributions=True)
    assert "DiffusionDistribution" in graph.source
    assert "x -> y" in graph.source


def test_numpyros_scan_carries_it():
    model = MODELS["gaussian"]

    def program():
        def step(d, _):
            return d, numpyro.sample("x", d)

        _, xs = scan(step, model(), None, length=4)
        return xs

    xs = seed(program, KEY)()
    assert xs.shape == (4, 2)
    assert len(np.unique(xs[:, 0])) == 4


def test_draws_have_the_chains_moments():
    # Exact kernels of a diagonal normal, the last step too.
    schedule = dp.schedules.reciprocal(4)
    network = dp.denoisers.Gaussian(schedule, np.array([1.0, -0.5]), np.array([0.2, 2.0]))
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (2,))
    level_1 = 0.75 * np.array([0.2, 2.0]) + 0.25
    draws = jax.jit(lambda: model().sample(KEY, (4_000,)))()
    assert_moments(draws, 0.75 * np.array([1.0, -0.5]), np.diag(0.75 * level_1 + 0.25))


def test_contexts_are_checked_by_name():
    with pytest.raises(ValueError, match=r"context is missing.*context_shape=\(2,\)"):
        MODELS["context"]()
    with pytest.raises(ValueError, match=r"context has shape \(3,\), which does not end"):
        MODELS["context"](jnp.zeros(3))
    with pytest.raises(ValueError, match="context was given, but the model has no context_shape"):
        MODELS["bits"](jnp.zeros(3))
