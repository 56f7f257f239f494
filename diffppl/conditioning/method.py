"""What a method of drawing from a posterior must define."""

import abc
import enum
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks.arguments import short_repr
from ..samplers import AbstractSampler
from .program import Values
from .target import Level, Target


class Exactness(enum.Enum):
    """What the draws of a method are draws from."""

    EXACT = "exact"
    """The chain's posterior, for any setting."""

    CONSISTENT = "consistent"
    """The chain's posterior, as the number of particles grows."""

    APPROXIMATE = "approximate"
    """Something near it; the method's docstring says how near."""


@final
class Draws(eqx.Module):
    """One chain of posterior draws.

    Attributes:
        x_0: every diffusion site, shape `(num_samples, ...)`, model units.
        latents: the latents, unconstrained, shape `(num_samples, p)`.
        log_evidence: log p(y) in nats; NaN where a method gives none.
        evidence_variance: relative variance of the evidence's estimate within this chain.
        log_weights: of the particles that the draws were chosen from; empty without any.
        sample_stats: per draw, shape `(num_samples,)`.
        step_stats: per step, in the order of the run, from t = T to 0 for each stage in turn.
    """

    x_0: Values
    latents: Float[Array, "num_samples p"]
    log_evidence: Float[Array, ""]
    evidence_variance: Float[Array, ""]
    log_weights: Float[Array, " num_particles"]
    sample_stats: dict[str, Array]
    step_stats: dict[str, Array]


class AbstractMethod(eqx.Module):
    """A way to draw from p(x_0, u | y). Subclasses state their `exactness`.

    A chain is `init`, then for each phase its iterations of `step` and an `end`, of which the last
    returns the draws. All are pure and run inside compiled calls; the loop over phases, and over
    chunks of iterations, is the caller's. To add a method, subclass this, mark it `typing.final`,
    and add a row to the tests' registry: it is then held against exact posteriors.
    """

    exactness: eqx.AbstractClassVar[Exactness]
    num_steps: eqx.AbstractVar[int | None]

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def resolve(self, target: Target, num_samples: int) -> "AbstractMethod":
        """The method with every setting filled in; ValueError for what it cannot do."""

    @abc.abstractmethod
    def prior_sampler(self) -> AbstractSampler:
        """How the prior is drawn that the method conditions: its chain, without observations."""

    @abc.abstractmethod
    def num_denoiser_calls(self, target: Target, num_samples: int) -> int | Int[Array, ""]:
        """Evaluations of the network in one chain; those for derivatives are not counted again."""

    @abc.abstractmethod
    def phases(self, target: Target) -> tuple[int, ...]:
        """The number of iterations of each phase."""

    @abc.abstractmethod
    def init(self, key: Array, target: Target, num_samples: int) -> Any:
        """The state at the start of the first phase."""

    @abc.abstractmethod
    def step(self, key: Array, target: Target, state: Any, phase: int, i: Int[Array, ""]) -> Any:
        """Iteration i = 0, 1, ... of a phase."""

    @abc.abstractmethod
    def end(self, key: Array, target: Target, state: Any, phase: int, num_samples: int) -> Any:
        """The state at the start of the next phase; after the last one, `Draws`."""


def draw(key: Array, target: Target, method: AbstractMethod, num_samples: int) -> Draws:
    """One whole chain, to be used inside compiled code."""
    keys = chain_keys(key, method.phases(target))
    state = method.init(keys.init, target, num_samples)
    for phase, length in enumerate(method.phases(target)):
        state = iterate(keys.steps[phase], target, method, state, phase, 0, length)
        state = method.end(keys.ends[phase], target, state, phase, num_samples)
    return state


@final
class ChainKeys(eqx.Module):
    """The keys of one chain: its start, steps and ends of phases, and what is reported."""

    init: Array
    steps: tuple[Array, ...]
    ends: tuple[Array, ...]
    report: Array


def chain_keys(key: Array, phases: tuple[int, ...]) -> ChainKeys:
    """Split the key of a chain."""
    key_init, key_steps, key_ends, key_report = jax.random.split(key, 4)
    num = len(phases)
    steps, ends = jax.random.split(key_steps, num), jax.random.split(key_ends, num)
    return ChainKeys(key_init, tuple(steps), tuple(ends), key_report)


def iterate(
    key: Array,
    target: Target,
    method: AbstractMethod,
    state: Any,
    phase: int,
    start: int | Int[Array, ""],
    stop: int | Int[Array, ""],
) -> Any:
    """Iterations `start` to `stop` - 1 of a phase; how a run is cut does not change it."""

    def body(i: Array, state: Any) -> Any:
        return method.step(jax.random.fold_in(key, i), target, state, phase, i)

    return jax.lax.fori_loop(start, stop, body, state)


def check_method(method: Any) -> None:
    """Refuse what is not a method, or None.

    Raises:
        TypeError: a class, or something else.
    """
    if isinstance(method, AbstractMethod | None):
        return
    what = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise TypeError(
        f"method is {what}; it must be an object such as diffppl.TwistedSMC(num_particles=1_000). "
        "NumPyro's own kernels go into numpyro.infer.MCMC."
    )


# What methods share -------------------------------------------------------------------------------


def draw_base(key: Array, target: Target, num: int) -> Values:
    """`num` draws of x_T at every diffusion site."""
    shapes = target.structure.shapes

    def draw(model: Any, shape: tuple[int, ...], key: Array) -> Array:
        return jnp.asarray(model.process.base((num, *shape)).sample(key), model.process.dtype)

    return target.map_sites(draw, shapes, target.split_key(key))


def reverse_step(key: Array, target: Target, x: Values, level: Level) -> Values:
    """Draws of x_{t-1} of the running stage from the models' own kernels.

    Args:
        key: a typed JAX key.
        target: without latents.
        x: every site, with an axis of draws.
        level: whose t may be a Python 1 for the last step.
    """

    def single(key: Array, x: Values) -> Values:
        estimates = target.estimate(x, level, jnp.zeros(0))
        keys = dict(zip(estimates, jax.random.split(key, len(estimates)), strict=True))
        drawn = {}
        for name, estimate in estimates.items():
            process = target.models[name].process
            if isinstance(level.t, int) and level.t == 1:
                kernel = process.final_step(x[name], estimate)
            else:
                kernel = process.reverse(x[name], estimate, level.t)
            drawn[name] = jnp.asarray(kernel.sample(keys[name]), process.dtype)
        return drawn

    num = jax.tree.leaves(x)[0].shape[0]
    return jax.vmap(single)(jax.random.split(key, num), x)


def only_diffusion_sites(target: Target, method: AbstractMethod) -> None:
    """Refuse latents, for methods that cannot infer them."""
    if target.structure.latents:
        raise ValueError(
            f"{type(method).__name__}() draws diffusion sites only, but the program has the latent "
            f"site {target.structure.latents[0]!r}; use TwistedSMC(), or ParticleGibbs beside NUTS "
            "in numpyro.infer.Gibbs."
        )


def unweighted(target: Target, x_0: Values, num_samples: int) -> Draws:
    """Draws without weights, without latents and without evidence."""
    nothing = jnp.zeros((num_samples, 0))
    log_likelihood = jax.vmap(target.log_likelihood)(x_0, nothing)
    nan = jnp.asarray(jnp.nan)
    return Draws(x_0, nothing, nan, nan, jnp.zeros(0), {"log_likelihood": log_likelihood}, {})
