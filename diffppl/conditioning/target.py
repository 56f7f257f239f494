"""The density that a bound program defines over its latent sites.

A program's joint density is p(x_0) r(x_0, u): a diffusion prior for every diffusion site times the
*likelihood* r, all the rest: observed sites, `numpyro.factor`, and the priors of the latent
sites u. Observations without noise are kept apart; they fix entries of x_0.

Diffusion sites run in stages (`structure`): p(x_0) = prod_k p(x_0^k | x_0^{<k}, u), and stage k has
a reverse chain of its own, whose network and context may depend on the x_0 of the stages before.
While stage k is at level t, earlier stages are at 0 and later ones at T.
"""

import math
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..model import DiffusionModel
from .bound import BoundProgram
from .moments import Moments, Observations, side_by_side
from .program import Values
from .states import most_probable
from .structure import Structure
from .tracing import Evaluation

Estimates = dict[str, Any]
Networks = dict[str, tuple[DiffusionModel, Array | None]]

_SHARPEST = 0.01  # of the variance of the last step, for an entry that is known


@final
class Level(eqx.Module):
    """Where the chains are: the stage that is running, and its t."""

    stage: int = eqx.field(static=True)
    t: Int[Array, ""] | int


@final
class Target(eqx.Module):
    """p(x_0) r(x_0, u) of one program and its data.

    Methods are for one particle: x_0 is a dictionary of diffusion sites in model units, u one
    vector of unconstrained latents. Map them over particles with `vmap`.

    Args:
        bound: the program and its data.
        num_steps: levels that every chain is read at; by default as many as the shortest has.
    """

    bound: BoundProgram
    models: dict[str, DiffusionModel]
    contexts: dict[str, Array | None]
    num_steps: int = eqx.field(static=True)

    def __init__(self, bound: BoundProgram, num_steps: int | None = None) -> None:
        found = _networks_at_origin(bound)
        lengths = [model.num_steps for model, _ in found.values()]
        self.bound = bound
        self.num_steps = min(lengths) if num_steps is None else num_steps
        # Chains of different lengths run in step: each is read at as many of its levels.
        self.models = {name: model.respace(self.num_steps) for name, (model, _) in found.items()}
        self.contexts = {name: context for name, (_, context) in found.items()}

    @property
    def structure(self) -> Structure:
        """What the sites of the program are."""
        return self.bound.structure

    # Diffusion sites ------------------------------------------------------------------------------

    def sites(self, stage: int | None = None, *, discrete: bool | None = None) -> tuple[str, ...]:
        """Names of diffusion sites: of one stage or of all, of one kind of data or of both."""
        return tuple(
            site.name
            for site in self.structure.diffusion
            if stage in (None, site.stage)
            and discrete in (None, self.models[site.name].process.support.is_discrete)
        )

    def map_sites(self, function: Callable[..., Any], *values: dict[str, Any]) -> dict[str, Any]:
        """`function(model, *values)` for each diffusion site that all the values have."""
        names = [name for name in self.models if all(name in value for value in values)]
        return {
            name: function(self.models[name], *(value[name] for value in values)) for name in names
        }

    def split_key(self, key: Array) -> dict[str, Array]:
        """A key of its own for each diffusion site."""
        return dict(zip(self.models, jax.random.split(key, len(self.models)), strict=True))

    def networks(self, x_0: Values, latents: Array) -> Networks:
        """Model and context of each diffusion site, given the x_0 of the stages before it."""
        found = {name: (model, self.contexts[name]) for name, model in self.models.items()}
        varying = [site.name for site in self.structure.diffusion if site.varies]
        if varying:
            evaluation = self.evaluate(x_0, latents)
            for name in varying:
                model, context = self.bound.model(evaluation, name)
                found[name] = model.respace(self.num_steps), context
        return found

    def estimate(self, x: Values, level: Level, latents: Array) -> Estimates:
        """The models' estimates of x_0 at the sites of the running stage.

        Args:
            x: every site, at the time that `level` gives it.
            level: where the chains are.
            latents: u.
        """
        finished = self.finished(x, level)
        networks = self.networks(self.bound.origin() | finished, latents)
        return {
            name: networks[name][0].estimate(x[name], level.t, networks[name][1])
            for name in self.sites(level.stage)
        }

    def finished(self, x: Values, level: Level) -> Values:
        """x_0 of the stages before the running one."""
        return {s.name: x[s.name] for s in self.structure.diffusion if s.stage < level.stage}

    def complete(
        self,
        x: Values,
        level: Level,
        latents: Array,
        x_0: Values,
        shifts: Values | None = None,
    ) -> Values:
        """One x_0 for every site, from one for the running stage.

        Later stages are denoised from x_T, given the x_0 of those before them.

        Args:
            x, level, latents: those of `estimate`.
            x_0: of the running stage.
            shifts: added to the x_0 of later real sites.
        """
        values = self.bound.origin() | self.finished(x, level) | x_0
        for stage in range(level.stage + 1, self.structure.num_stages):
            ahead = x | {name: values[name] for name in self.finished(x, Level(stage, 0))}
            estimates = self.estimate(ahead, Level(stage, self.num_steps), latents)
            for name, estimate in estimates.items():
                found = most_probable(self.models[name].process, estimate)
                shift = (shifts or {}).get(name)
                values = values | {name: found if shift is None else found + shift}
        return values

    # Observations without noise -------------------------------------------------------------------

    @property
    def has_noiseless(self) -> bool:
        """Whether some entries of diffusion sites are observed without noise."""
        return self.bound.noiseless is not None

    def known(self) -> dict[str, tuple[Bool[Array, "..."], Array]]:
        """Which entries of each site were observed without noise, and their values.

        Model units; 0 where unknown.
        """
        known = self.bound.known()
        if not known:
            return {name: (jnp.zeros(x.shape, bool), x) for name, x in self.bound.origin().items()}
        return {
            name: (mask, jnp.where(mask, self.models[name].to_model(value), 0))
            for name, (mask, value) in known.items()
        }

    def clamp(self, x_0: Values) -> Values:
        """Diffusion sites (model units) with their known entries set to the observed values."""
        known = self.known()
        return {name: jnp.where(*known[name], x) for name, x in x_0.items()}

    def log_known_units(self) -> Float[Array, ""]:
        """log|d user / d model| of the known entries, which their density in model units lacks."""
        total = jnp.zeros(())
        for name, (mask, value) in self.known().items():
            model = self.models[name]
            if self.has_noiseless and not model.process.support.is_discrete:
                slope = jax.jvp(model.to_user, (value,), (jnp.ones_like(value),))[1]
                total = total + jnp.sum(jnp.where(mask, jnp.log(jnp.abs(slope)), 0.0))
        return total

    # Latent sites -------------------------------------------------------------------------------

    @property
    def num_latents(self) -> int:
        """Length of u."""
        return sum(math.prod(shape) for shape in self.bound.traces.latents.values())

    def draw_latents(self, key: Array) -> tuple[Float[Array, " p"], Float[Array, ""]]:
        """Latent sites from their prior, and the log-density of the draw; both unconstrained."""
        drawn, log_density = self.bound.draw_latents(key)
        parts = [jnp.ravel(drawn[name]).astype(float) for name in self.bound.traces.latents]
        return jnp.concatenate([jnp.zeros(0), *parts]), log_density

    def log_prior(self, latents: Float[Array, " p"]) -> Float[Array, ""]:
        """The log-density of `draw_latents`."""
        evaluation = self.evaluate(self.bound.origin(), latents)
        return sum(evaluation.log_priors.values(), jnp.zeros(()))

    def unravel(self, latents: Float[Array, " p"]) -> Values:
        """The vector of latents by site, unconstrained."""
        values, start = {}, 0
        for name, shape in self.bound.traces.latents.items():
            values[name] = latents[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return values

    # The likelihood -----------------------------------------------------------------------------

    def evaluate(self, x_0: Values, latents: Array) -> Evaluation:
        """The program at one value of its latent sites."""
        return self.bound.evaluate(x_0, self.unravel(latents))

    def draw(self, key: Array, x_0: Values, latents: Array) -> Evaluation:
        """`evaluate` with new draws of the free sites."""
        return self.bound.draw(key, x_0, self.unravel(latents))

    def log_likelihood(self, x_0: Values, latents: Array) -> Float[Array, ""]:
        """log r(x_0, u) in nats, of unconstrained u: everything but diffusion priors and Deltas."""
        densities = self.evaluate(x_0, latents).log_densities.values()
        return sum((jnp.sum(density) for density in densities), jnp.zeros(()))

    def observations(
        self,
        x_0: Values,
        latents: Array,
        *,
        noiseless: tuple[str, ...] = (),
        labels: bool = False,
    ) -> Observations:
        """Observed sites with moments apart from the rest, at one x_0.

        Args:
            x_0, latents: where.
            noiseless: sites whose known entries are among the observations, last, with a variance
                that only keeps what a twist adds to it from being singular. Known entries of other
                sites then have no effect.
            labels: take Bernoulli sites apart, too. Their variance is their Fisher information,
                but a poor guide far away.
        """
        evaluation = self.evaluate(x_0, latents)
        apart = {
            name: moments
            for name, moments in evaluation.moments.items()
            if labels or name not in self.bound.traces.labels
        }
        rest = (d for name, d in evaluation.log_densities.items() if name not in apart)
        log_rest = sum((jnp.sum(density) for density in rest), jnp.zeros(()))
        found = list(apart.values())
        if noiseless and self.has_noiseless:
            found.append(self._noiseless_moments(x_0, noiseless))
        return side_by_side(found, log_rest)

    def num_observed(self) -> int:
        """How many numbers `observations` takes apart, known ones among them."""

        def value() -> Array:
            latents = jnp.zeros(self.num_latents)
            return self.observations(self.bound.origin(), latents, noiseless=self.sites()).value

        return jax.eval_shape(value).size

    def without_effect(self, names: tuple[str, ...]) -> Bool[Array, " k"]:
        """Of all entries that Deltas show: whether a mask hides one, or it is of another site."""
        noiseless = self.bound.noiseless
        if noiseless is None:
            return jnp.zeros(0, bool)
        shapes = self.structure.shapes
        among = {name: jnp.full(shape, name in names) for name, shape in shapes.items()}
        return ~(noiseless.visible & noiseless.gather(among, shapes))

    def _noiseless_moments(self, x_0: Values, names: tuple[str, ...]) -> Moments:
        noiseless, shapes = self.bound.noiseless, self.structure.shapes
        assert noiseless is not None
        known = {name: value for name, (_, value) in self.known().items()}
        least = self.map_sites(lambda model, x: jnp.full(x.shape, _least_variance(model)), x_0)
        value, mean, variance = (noiseless.gather(each, shapes) for each in (known, x_0, least))
        without = self.without_effect(names)
        constant = 0.5 * math.log(2 * math.pi) * jnp.sum(without)
        mean, value = (jnp.where(without, 0.0, x) for x in (mean, value))
        return Moments(value, mean, jnp.where(without, 1.0, variance), constant)


@eqx.filter_jit
def _networks_at_origin(bound: BoundProgram) -> Networks:
    latents = {name: jnp.zeros(shape) for name, shape in bound.traces.latents.items()}
    evaluation = bound.evaluate(bound.origin(), latents)
    return {name: bound.model(evaluation, name) for name in bound.structure.shapes}


def _least_variance(model: DiffusionModel) -> Float[Array, ""]:
    """Of a known entry in a twist: far below what the last step leaves, but not zero."""
    schedule = model.process.schedule
    return _SHARPEST * schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1]
