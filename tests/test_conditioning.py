"""Contracts of every twist, reverse chain and method of the registry, on tiny programs."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import diffppl as dp
from diffppl.conditioning.bound import BoundProgram
from diffppl.conditioning.chains import Particle
from diffppl.conditioning.method import draw, draw_base
from diffppl.conditioning.target import Level, Target
from diffppl.conditioning.twists.enumeration import JointStates
from diffppl.samplers import AbstractSampler

from . import registry
from .statistics import assert_within_standard_errors

NO_LATENTS = jnp.zeros(0)
KEY = jax.random.key(0)


def real_model() -> dp.DiffusionModel:
    return registry.KNOWN["gaussian"].model(dp.schedules.log_snr_linear(6))


def bit_model() -> dp.DiffusionModel:
    return registry.KNOWN["listed-bernoulli"].model(dp.schedules.reciprocal(6))


def real(y=None):
    x = numpyro.sample("x", real_model()())
    numpyro.sample("y", dist.Normal(x[0] - 0.6 * x[1], 1.3), obs=y)


def bits(y=None):
    b = numpyro.sample("b", bit_model()())
    numpyro.sample("y", dist.Normal(b[0] + 2.0 * b[2], 0.7), obs=y)


def both(y=None):
    x, b = numpyro.sample("x", real_model()()), numpyro.sample("b", bit_model()())
    numpyro.sample("y", dist.Normal(x[0] + b[1], 0.7), obs=y)


def noiseless(y=None):
    x = numpyro.sample("x", real_model()())
    numpyro.sample("y", dist.Delta(x[0]), obs=y)


PROGRAMS = {"real": real, "bits": bits, "both": both, "noiseless": noiseless}


@functools.cache
def target_of(kind: str) -> Target:
    return Target(BoundProgram(PROGRAMS[kind], (), {"y": 0.9}))


def resolved(make, *arguments) -> dict:
    """What a row makes, resolved for every program that it supports."""
    found = {}
    for kind in PROGRAMS:
        try:
            found[kind] = make().resolve(target_of(kind), *arguments)
        except ValueError:  # the program is not supported
            continue
    assert found
    return found


def shapes(tree) -> list:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


# Twists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.TWISTS)
def test_a_twist_has_a_value_and_guided_estimates(name: str) -> None:
    for kind, twist in resolved(registry.TWISTS[name]).items():
        target, level = target_of(kind), Level(0, jnp.asarray(3))
        assert bool(eqx.tree_equal(twist, twist.resolve(target)))
        assert repr(twist).startswith(type(twist).__name__)
        assert len(repr(twist)) < 100
        assert isinstance(twist.has_jacobian(target), bool)

        def evaluate(x, target=target, twist=twist, level=level):
            return twist.evaluate(target, x, level, NO_LATENTS)

        def alone_and_together(x, evaluate=evaluate):
            return evaluate(jax.tree.map(lambda leaf: leaf[0], x)), jax.vmap(evaluate)(x)

        x = draw_base(KEY, target, 3)
        if isinstance(twist, dp.twists.AbstractAdaptiveTwist):
            equal = jnp.full(3, -jnp.log(3.0))
            twist = twist.adapted(target, x, level, jnp.zeros((3, 0)), equal)
            evaluate = functools.partial(evaluate, twist=twist)
            alone_and_together = functools.partial(alone_and_together, evaluate=evaluate)
        alone, together = eqx.filter_jit(alone_and_together)(x)
        assert alone.log_value.shape == ()
        assert np.all(np.isfinite(together.log_value))
        for one, first in zip(*map(jax.tree.leaves, (alone, together)), strict=True):
            np.testing.assert_allclose(one, first[0], rtol=1e-4, atol=1e-5)
        of_model = jax.eval_shape(
            lambda x, target=target, level=level: target.estimate(x, level, NO_LATENTS),
            jax.tree.map(lambda leaf: leaf[0], x),
        )
        for estimates in (alone.estimates, alone.guided):
            assert jax.tree.structure(estimates) == jax.tree.structure(of_model)
            assert shapes(estimates) == shapes(of_model)


def test_observations_that_no_state_allows_have_no_evidence() -> None:
    def impossible(y=None):
        b = numpyro.sample("b", bit_model()())
        numpyro.factor("cutoff", jnp.where(b[0] + b[1] > 2, 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(b[0] + 2.0 * b[2], 0.7), obs=y)

    target = Target(BoundProgram(impossible, (), {"y": 0.9}))
    logits = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]))

    @eqx.filter_jit
    def moments(target):
        states = JointStates(target, {"b": logits}, NO_LATENTS)
        return states.log_mean(), states.marginals()["b"]

    log_mean, marginals = moments(target)
    assert log_mean == -jnp.inf
    np.testing.assert_allclose(marginals, logits, atol=1e-5)  # unconditioned

    method = dp.TwistedSMC(5, twist=dp.twists.Enumeration()).resolve(target, 5)
    draws = eqx.filter_jit(draw)(KEY, target, method, 5)
    assert draws.log_evidence == -jnp.inf
    assert np.all(draws.step_stats["nan_share"] == 0)


def test_an_analytic_denoiser_leaves_the_inflation_of_a_network() -> None:
    schedule, y = dp.schedules.log_snr_linear(6), 0.9
    network = registry.NETWORKS["mlp"](KEY, (1,), (1,), 6)
    learned = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (1,))

    def alone(y=None):
        z = numpyro.sample("z", learned())
        numpyro.sample("y", dist.Normal(z[0], 0.1), obs=y)

    def beside_an_analytic_one(y=None):
        numpyro.sample("x", real_model()())
        alone(y)

    def log_value(program):
        target = Target(BoundProgram(program, (), {"y": y}))
        x = {"x": jnp.array([0.2, -0.4]), "z": jnp.array([-0.7])}
        x = {name: x[name] for name in target.sites()}
        evaluate = eqx.filter_jit(dp.twists.Quadrature(num_nodes=3).evaluate)
        return evaluate(target, x, Level(0, 3), NO_LATENTS).log_value

    np.testing.assert_allclose(log_value(beside_an_analytic_one), log_value(alone), rtol=1e-4)


# Reverse chains -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.REVERSE_CHAINS)
def test_the_weights_of_a_step_have_mean_one(name: str) -> None:
    """The mean of p(x_{t-1} | x_t) / q(x_{t-1}) over q is 1, at the final step as well."""
    target, chain = target_of("real"), registry.REVERSE_CHAINS[name]()
    twist = dp.twists.MomentMatching().resolve(target)
    chain.check(target, twist)
    assert isinstance(chain.sampler(), AbstractSampler)
    x = {"x": jnp.array([0.4, -1.1])}

    def log_ratios(keys, t: int):
        level = Level(0, jnp.asarray(t))
        twisted = chain.select(twist.evaluate(target, x, level, NO_LATENTS))
        particle = Particle(x, twisted, NO_LATENTS)

        def step(key):
            if t == 1:
                return chain.final_step(key, target, particle, 0)
            return chain.step(key, target, particle, level)

        return jax.vmap(step)(keys)[1]

    for t in (3, 1):
        ratios = np.exp(eqx.filter_jit(log_ratios)(jax.random.split(KEY, 10_000), t))
        assert_within_standard_errors(ratios.mean(), 1.0, ratios.std() / np.sqrt(len(ratios)))
        assert ratios.std() > 1e-3  # the kernel is guided


# Methods --------------------------------------------------------------------------------------

NUM = 4


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_draws_and_says_what_it_is(name: str) -> None:
    given = registry.METHODS[name](NUM)
    assert isinstance(given.exactness, dp.Exactness)
    assert repr(given).startswith(f"{type(given).__name__}(")
    assert len(repr(given)) < 40
    kind, method = next(iter(resolved(lambda: given, NUM).items()))
    target = target_of(kind)
    for field in dataclasses.fields(method):
        if field.name != "num_steps":  # None for all
            assert getattr(method, field.name) is not None, f"{field.name} is not resolved"
    assert bool(eqx.tree_equal(method, method.resolve(target, NUM)))
    assert isinstance(method.prior_sampler(), AbstractSampler)
    assert int(method.num_denoiser_calls(target, NUM)) >= NUM
    assert all(isinstance(length, int) for length in method.phases(target))
    draws = eqx.filter_jit(draw)(KEY, target, method, NUM)
    assert draws.x_0["x"].shape == (NUM, 2)
    assert np.all(np.isfinite(draws.x_0["x"]))
    assert draws.latents.shape == (NUM, 0)
    assert all(stat.shape == (NUM,) for stat in draws.sample_stats.values())
    has_evidence = given.exactness is not dp.Exactness.APPROXIMATE
    assert np.isfinite(draws.log_evidence) == has_evidence
    assert bool(draws.log_weights.size) == has_evidence
