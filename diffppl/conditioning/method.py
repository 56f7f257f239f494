"""The interface of methods that draw from a posterior, and functions that they share."""

import abc
import enum
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..checks.arguments import check_fields, short_repr
from ..model import DiffusionModel
from ..samplers import AbstractSampler
from .keys import chain_keys, split
from .program import Values
from .target import Level, Target


class Exactness(enum.Enum):
    """How the draws of a method relate to the posterior of a chain."""

    EXACT = "exact"
    """The posterior of the chain, for any setting."""

    CONSISTENT = "consistent"
    """The posterior of the chain, as the number of particles grows."""

    APPROXIMATE = "approximate"
    """An approximation to it; the docstring of the method states the bias."""


@final
class Draws(eqx.Module):
    """One chain of posterior draws.

    Attributes:
        x_0: every diffusion site in model units, shape `(num_samples, ...)`.
        latents: unconstrained latents, shape `(num_samples, p)`.
        log_evidence: log p(y) in nats; NaN for a method without an estimate.
        evidence_variance: relative variance of the evidence estimate within this chain.
        log_weights: of the particles that the draws are selected from; empty without any.
        sample_stats: statistics per draw, shape `(num_samples,)`.
        step_stats: statistics per step in the order of the run, t = T to 0 for each stage in turn.
    """

    x_0: Values
    latents: Float[Array, "num_samples p"]
    log_evidence: Float[Array, ""]
    evidence_variance: Float[Array, ""]
    log_weights: Float[Array, " num_particles"]
    sample_stats: dict[str, Array]
    step_stats: dict[str, Array]


class AbstractMethod(eqx.Module):
    """A method to draw from p(x_0, u | y). Subclasses declare their `exactness`.

    A chain consists of `init` and, for each phase, its iterations of `step` and an `end`, the last
    of which returns the draws. All are pure and run inside compiled calls; the caller loops over
    phases and over chunks of iterations. To add a method, subclass this, mark it `typing.final`,
    and add a row to the tests' registry, which compares it with exact posteriors.
    """

    exactness: eqx.AbstractClassVar[Exactness]
    num_steps: eqx.AbstractVar[int | None]

    def __check_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def resolve(self, target: Target, num_samples: int) -> "AbstractMethod":
        """Return the method with every setting filled in; ValueError for an unsupported program."""

    @abc.abstractmethod
    def prior_sampler(self) -> AbstractSampler:
        """Return the sampler of the prior that the method conditions, without observations."""

    @abc.abstractmethod
    def num_denoiser_calls(self, target: Target, num_samples: int) -> int | Int[Array, ""]:
        """Return the network evaluations of one chain; derivatives are not counted separately."""

    @abc.abstractmethod
    def phases(self, target: Target) -> tuple[int, ...]:
        """Return the number of iterations of each phase."""

    @abc.abstractmethod
    def init(self, key: Array, target: Target, num_samples: int) -> PyTree:
        """Return the state at the start of the first phase."""

    @abc.abstractmethod
    def step(
        self, key: Array, target: Target, state: PyTree, phase: int, i: Int[Array, ""]
    ) -> PyTree:
        """Return the state after iteration i = 0, 1, ... of a phase."""

    @abc.abstractmethod
    def end(
        self, key: Array, target: Target, state: PyTree, phase: int, num_samples: int
    ) -> PyTree:
        """Return the state at the start of the next phase; after the last phase, `Draws`."""


def draw(key: Array, target: Target, method: AbstractMethod, num_samples: int) -> Draws:
    """Run one whole chain inside compiled code."""
    keys = chain_keys(key, method.phases(target))
    state = method.init(keys.init, target, num_samples)
    for phase, length in enumerate(method.phases(target)):
        state = iterate(keys.steps[phase], target, method, state, phase, 0, length)
        state = method.end(keys.ends[phase], target, state, phase, num_samples)
    return state


def iterate(
    key: Array,
    target: Target,
    method: AbstractMethod,
    state: PyTree,
    phase: int,
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
) -> PyTree:
    """Run iterations `start` to `stop` - 1 of a phase; the result does not depend on the chunks."""

    def body(i: Array, state: PyTree) -> PyTree:
        # The key depends on i alone, so chunks do not change it.
        return method.step(jax.random.fold_in(key, i), target, state, phase, i)

    return jax.lax.fori_loop(start, stop, body, state)


def check_method(method: object) -> None:
    """Check that `method` is a method or None.

    Raises:
        TypeError: `method` is a class or another object.
    """
    if isinstance(method, AbstractMethod | None):
        return
    what = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise TypeError(
        f"method is {what}; it must be an object such as diffppl.TwistedSMC(num_particles=1_000). "
        "Use numpyro.infer.MCMC for NumPyro's own kernels."
    )


# Functions that methods share ---------------------------------------------------------------------


def draw_base(key: Array, target: Target, num: int) -> Values:
    """Draw `num` samples of x_T at every diffusion site."""
    shapes = target.structure.shapes

    def draw(model: DiffusionModel, shape: tuple[int, ...], key: Array) -> Array:
        return jnp.asarray(model.process.base((num, *shape)).sample(key), model.process.dtype)

    return target.map_sites(draw, shapes, target.split_key(key))


def reverse_step(key: Array, target: Target, x: Values, level: Level) -> Values:
    """Draw x_{t-1} of the running stage from the models' own kernels.

    Args:
        key: a typed JAX key.
        target: a target without latents.
        x: every site, with a leading axis of draws.
        level: stage and t; a Python integer t = 1 selects the final step.
    """

    def single(key: Array, x: Values) -> Values:
        estimates = target.estimate(x, level, jnp.zeros(0))
        keys = dict(zip(estimates, split(key, len(estimates)), strict=True))
        drawn = {}
        for name, estimate in estimates.items():
            process = target.models[name].process
            # p(x_0 | x_1) has a kernel of its own; a traced t is 2 or more.
            if isinstance(level.t, int) and level.t == 1:
                kernel = process.final_step(x[name], estimate)
            else:
                kernel = process.reverse(x[name], estimate, level.t)
            drawn[name] = jnp.asarray(kernel.sample(keys[name]), process.dtype)
        return drawn

    num = jax.tree.leaves(x)[0].shape[0]
    return jax.vmap(single)(jax.random.split(key, num), x)


def check_no_latents(target: Target, method: AbstractMethod) -> None:
    """Raise ValueError if the program has latents, which `method` does not infer."""
    if target.structure.latents:
        raise ValueError(
            f"{type(method).__name__}() draws diffusion sites only, but the program has the latent "
            f"site {target.structure.latents[0]!r}; use TwistedSMC(), or ParticleGibbs beside NUTS "
            "in numpyro.infer.Gibbs."
        )


def unweighted(target: Target, x_0: Values, num_samples: int) -> Draws:
    """Return draws without weights, latents and evidence."""
    latents = jnp.zeros((num_samples, 0))
    log_likelihood = jax.vmap(target.log_likelihood)(x_0, latents)
    nan = jnp.asarray(jnp.nan)
    return Draws(x_0, latents, nan, nan, jnp.zeros(0), {"log_likelihood": log_likelihood}, {})
