"""Nothing compiles twice: every public entry traces once for new keys, new data of the same shape
and new float settings.

Python code of a network runs only while a program is traced, so counting its calls counts traces.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jaxtyping import Array

import diffppl as dp
from diffppl.conditioning import runs
from diffppl.conditioning.method import iterate

from .registry import METHODS

SCHEDULE = dp.schedules.cosine(6)


class Counter:
    calls = 0


class Counting(eqx.Module):
    """A linear network that counts how often Python runs it."""

    weight: Array
    counter: Counter = eqx.field(static=True)

    def __call__(self, x_t: Array, t: Array, context: Array | None) -> Array:
        self.counter.calls += 1
        return self.weight * x_t


def model(counter: Counter, weight: float, scaling: float) -> dp.DiffusionModel:
    return dp.DiffusionModel(
        process=dp.GaussianDiffusion(SCHEDULE),
        network=Counting(jnp.asarray(weight), counter),
        event_shape=(2,),
        scaling=dp.Scaling(0.0, scaling),
    )


SGD = optax.sgd(1e-3)


def run_fit(key, model, x, setting):
    dp.fit(
        key,
        model,
        x,
        num_iterations=4,
        batch_size=4,
        chunk=2,
        optimizer=SGD,
        progress_bar=False,
    )


# key, model, data, a float setting -> anything
ENTRIES: dict[str, Callable] = {
    "elbo": lambda key, model, x, setting: dp.elbo(key, model, x),
    "elbo-sampled": lambda key, model, x, setting: dp.elbo(key, model, x, steps=dp.SampledSteps(2)),
    "fit": run_fit,
    "sample": lambda key, model, x, setting: dp.sample(key, model, (3,)),
    "sample-path": lambda key, model, x, setting: dp.sample_path(key, model, (3,)),
    "sample-ddim": lambda key, model, x, setting: dp.sample(
        key, model, (3,), sampler=dp.samplers.DDIM(eta=setting), num_steps=3
    ),
    "sample-dpm-solver": lambda key, model, x, setting: dp.sample(
        key, model, (3,), sampler=dp.samplers.DPMSolver(), num_steps=3
    ),
    "importance-bound": lambda key, model, x, setting: dp.importance_bound(
        key, model, x, num_particles=2
    ),
    "jarzynski": lambda key, model, x, setting: dp.jarzynski(key, model, x, num_trajectories=2),
    "flow-likelihood": lambda key, model, x, setting: dp.flow_likelihood(key, model, x),
}


@pytest.mark.filterwarnings("ignore:data have a mean square")
@pytest.mark.filterwarnings("ignore:column . of data .* hardly exceeds the noise")
@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_traces_once(name):
    counter, entry = Counter(), ENTRIES[name]
    rng = np.random.default_rng(0)
    models = [model(counter, weight, scaling) for weight, scaling in ((0.1, 1.0), (0.3, 2.0))]
    counter.calls = 0  # making a model calls its network too
    entry(jax.random.key(0), models[0], rng.normal(size=(8, 2)), 0.1)
    traced = counter.calls
    assert traced > 0
    entry(jax.random.key(1), models[0], rng.normal(size=(8, 2)), 0.1)
    assert counter.calls == traced, "a new key or new data"
    entry(jax.random.key(2), models[1], rng.normal(size=(8, 2)), 0.2)
    assert counter.calls == traced, "a new float"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the particles collapsed")
def test_a_posterior_traces_once_for_new_keys_and_observations():
    counter = Counter()
    prior = model(counter, 0.1, 1.0)

    def program(y=None):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    posterior = dp.Posterior(
        program, dp.TwistedSMC(num_particles=8), num_chains=2, num_samples=8, progress_bar=False
    )
    posterior.run(jax.random.key(0), y=0.3)
    traced = counter.calls
    posterior.run(jax.random.key(1), y=-0.8)
    assert counter.calls == traced


@pytest.mark.filterwarnings("ignore:the particles collapsed")
@pytest.mark.parametrize(
    "method",
    [
        lambda setting: dp.TwistedSMC(8, ess_threshold=setting),
        pytest.param(
            lambda setting: dp.TwistedSMC(8, twist=dp.twists.Quadrature(2, setting)),
            marks=pytest.mark.slow,
        ),
        lambda setting: dp.SplitGibbs(2, setting),
    ],
    ids=["TwistedSMC", "Quadrature", "SplitGibbs"],
)
def test_a_posterior_traces_once_for_a_new_float(method):
    counter = Counter()
    prior = model(counter, 0.1, 1.0)

    def program(y=None):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)

    def run(setting: float) -> None:
        settings = {"num_chains": 1, "num_samples": 8, "progress_bar": False}
        dp.Posterior(program, method(setting), **settings).run(jax.random.key(0), y=0.3)

    run(0.25)
    traced = counter.calls
    run(0.75)
    assert counter.calls == traced


@pytest.mark.filterwarnings("ignore:the particles collapsed")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("has_latent", [False, True])
def test_each_part_of_a_run_is_traced_once(name, has_latent, monkeypatch):
    """The state that a chain starts from has the types of that which a step leaves."""
    prior, method, counter = model(Counter(), 0.1, 1.0), METHODS[name](9), Counter()

    def counted(*args):
        counter.calls += 1
        return iterate(*args)

    monkeypatch.setattr(runs, "iterate", counted)

    def program(y=None):
        x = numpyro.sample("x", prior())
        if name == "replacement":
            numpyro.sample("y", dist.Delta(x[0]), obs=y)
        else:
            shift = numpyro.sample("b", dist.Normal(0.0, 1.0)) if has_latent else 0.0
            numpyro.sample("y", dist.Normal(x[0] + shift, 0.5), obs=y)

    if has_latent and not isinstance(method, dp.TwistedSMC):
        pytest.skip("diffusion sites only")
    posterior = dp.Posterior(program, method, num_chains=2, num_samples=9, progress_bar=False)
    posterior.run(jax.random.key(0), y=0.3)
    assert counter.calls == 1
