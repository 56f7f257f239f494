"""What a method of drawing from a posterior must say."""

import abc
import enum
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import short_repr
from ..samplers import AbstractSampler
from .program import Values
from .target import Target


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
        latents: the other latents, unconstrained, shape `(num_samples, p)`.
        log_evidence: log p(y) in nats; NaN where a method gives none.
        evidence_variance: relative variance of the evidence's estimate within this chain.
        log_weights: of the particles that the draws were chosen from; empty without any.
        sample_stats: per draw, shape `(num_samples,)`.
        step_stats: per step, in the order of the run, shape `(num_steps + 1,)`.
    """

    x_0: Values
    latents: Float[Array, "num_samples p"]
    log_evidence: Float[Array, ""]
    evidence_variance: Float[Array, ""]
    log_weights: Float[Array, " num_particles"]
    sample_stats: dict[str, Array]
    step_stats: dict[str, Array]


class AbstractMethod(eqx.Module):
    """A way to draw from p(x_0, u given y). Subclasses state their `exactness`.

    `draw` is pure, runs inside one compiled call, and loops by `lax.scan`. To add a method,
    subclass this, mark it `typing.final`, say its exactness, and add a row to the tests' registry:
    it is then held against exact posteriors.
    """

    exactness: eqx.AbstractClassVar[Exactness]
    num_steps: eqx.AbstractVar[int | None]

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def check(self, target: Target, num_samples: int) -> None:
        """Refuse what the method cannot do, before any work; abstract values only."""

    @abc.abstractmethod
    def prior_sampler(self, target: Target) -> AbstractSampler:
        """How the prior is drawn that the method conditions: its chain, without observations."""

    @abc.abstractmethod
    def num_denoiser_calls(self, target: Target, num_samples: int) -> int | Int[Array, ""]:
        """Evaluations of the network in one chain; those for derivatives are not counted again."""

    @abc.abstractmethod
    def num_ticks(self, target: Target) -> int:
        """How often `draw` calls `tick`."""

    @abc.abstractmethod
    def draw(self, key: Array, target: Target, num_samples: int, tick: Any) -> Draws:
        """One chain; `tick()` fills the progress bar, `num_ticks` times."""


def draw_base(key: Array, target: Target, num: int) -> Values:
    """`num` draws of x_T at every diffusion site."""

    def draw(model: Any, site: Any, key: Array) -> Array:
        process = model.process
        return jnp.asarray(process.base((num, *site.shape)).sample(key), process.dtype)

    return target.map_sites(draw, target.sites.diffusion, target.split_key(key))


def reverse_step(
    key: Array, target: Target, x_t: Values, t: Array | int, contexts: dict[str, Array | None]
) -> Values:
    """A draw of x_{t-1} from the model's own kernel at every diffusion site."""

    def draw(model: Any, x: Array, context: Array | None, key: Array) -> Array:
        return jnp.asarray(model.reverse_kernel(x, t, context).sample(key), x.dtype)

    return target.map_sites(draw, x_t, contexts, target.split_key(key))


def only_diffusion_sites(target: Target, method: AbstractMethod) -> None:
    """Refuse other latents, for methods that cannot infer them."""
    if target.sites.latents:
        raise ValueError(
            f"{type(method).__name__}() draws diffusion sites only, but the program has the latent "
            f"site {target.sites.latents[0]!r}; use TwistedSMC(), or ParticleGibbs beside NUTS in "
            "numpyro.infer.Gibbs."
        )


def unweighted(target: Target, x_0: Values, num_samples: int) -> Draws:
    """Draws without weights, without other latents and without evidence."""
    nothing = jnp.zeros((num_samples, 0))
    log_likelihood = jax.vmap(target.log_likelihood)(x_0, nothing)
    nan = jnp.asarray(jnp.nan)
    return Draws(x_0, nothing, nan, nan, jnp.zeros(0), {"log_likelihood": log_likelihood}, {})
