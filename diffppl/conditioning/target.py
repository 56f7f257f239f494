"""Density of a bound program over its latent sites.

The joint density of a program is p(x_0) r(x_0, u), the product of a diffusion prior for every
diffusion site and the *likelihood* r of all other sites: observed sites, `numpyro.factor`, and the
priors of the latent sites u. Noiseless observations are not part of r; they fix entries of x_0.

Diffusion sites run in stages (`structure`): p(x_0) = prod_k p(x_0^k | x_0^{<k}, u). Each stage k
has its own reverse chain, whose network and context may depend on x_0 of earlier stages. While
stage k is at level t, earlier stages are at level 0 and later ones at level T.
"""

import math
from collections.abc import Callable, Mapping
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..model import DiffusionModel, respaced
from .bound import BoundProgram
from .keys import split
from .moments import Moments, Observations, concatenate_moments
from .program import Values
from .states import most_probable
from .structure import Structure
from .tracing import Evaluation

Estimates = dict[str, PyTree]  # of the types of the sites' processes
Networks = dict[str, tuple[DiffusionModel, Array | None]]

_MIN_VARIANCE_SHARE = 0.01  # of a noiseless entry, relative to the variance of the final step


@final
class Level(eqx.Module):
    """Position of the chains: the running stage and its t."""

    stage: int = eqx.field(static=True)
    t: Int[Array, ""] | int


@final
class Target(eqx.Module):
    """Density p(x_0) r(x_0, u) of a program and its data.

    Methods are for one particle: x_0 is a dictionary of diffusion sites in model units, u a vector
    of unconstrained latents. Use `vmap` to evaluate them at several particles.

    Args:
        bound: the program and its data.
        num_steps: number of steps of all chains; defaults to that of the shortest chain.
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
        # The chains run in parallel, so they are respaced to the same number of steps.
        self.models = {name: respaced(model, self.num_steps) for name, (model, _) in found.items()}
        self.contexts = {name: context for name, (_, context) in found.items()}

    @property
    def structure(self) -> Structure:
        """Roles of the sites of the program."""
        return self.bound.structure

    # Diffusion sites ------------------------------------------------------------------------------

    def sites(self, stage: int | None = None, *, discrete: bool | None = None) -> tuple[str, ...]:
        """Return names of diffusion sites, optionally of one stage or of one kind of data."""
        return tuple(
            site.name
            for site in self.structure.diffusion
            if stage in (None, site.stage)
            and discrete in (None, self.models[site.name].process.support.is_discrete)
        )

    def map_sites(self, function: Callable[..., Array], *values: Mapping[str, object]) -> Values:
        """Evaluate `function(model, *values)` at each diffusion site present in all `values`."""
        names = [name for name in self.models if all(name in value for value in values)]
        return {
            name: function(self.models[name], *(value[name] for value in values)) for name in names
        }

    def split_key(self, key: Array) -> dict[str, Array]:
        """Split a key into one for each diffusion site."""
        return dict(zip(self.models, split(key, len(self.models)), strict=True))

    def networks(self, x_0: Values, latents: Array) -> Networks:
        """Return model and context of each diffusion site; they may depend on earlier stages."""
        found = {name: (model, self.contexts[name]) for name, model in self.models.items()}
        varying = [site.name for site in self.structure.diffusion if site.varies]
        if varying:
            evaluation = self.evaluate(x_0, latents)
            for name in varying:
                model, context = self.bound.model(evaluation, name)
                found[name] = respaced(model, self.num_steps), context
        return found

    def estimate(self, x: Values, level: Level, latents: Array) -> Estimates:
        """Return the models' estimates of x_0 for the sites of the running stage.

        Args:
            x: values of all sites, each at its time under `level`.
            level: position of the chains.
            latents: u.
        """
        finished = self.finished(x, level)
        networks = self.networks(self.bound.origin() | finished, latents)
        return {
            name: networks[name][0].estimate(x[name], level.t, networks[name][1])
            for name in self.sites(level.stage)
        }

    def finished(self, x: Values, level: Level) -> Values:
        """Return x_0 of the stages before the running one."""
        return {s.name: x[s.name] for s in self.structure.diffusion if s.stage < level.stage}

    def complete(
        self,
        x: Values,
        level: Level,
        latents: Array,
        x_0: Values,
        shifts: Values | None = None,
    ) -> Values:
        """Extend x_0 of the running stage to all sites.

        Later stages are denoised from x_T, conditionally on x_0 of earlier stages.

        Args:
            x, level, latents: as in `estimate`.
            x_0: values of the running stage.
            shifts: added to x_0 of later sites of real data.
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
        """Whether any entries of diffusion sites are observed without noise."""
        return self.bound.noiseless is not None

    def observed_entries(self) -> dict[str, tuple[Bool[Array, "..."], Array]]:
        """Return masks and values (model units, 0 elsewhere) of noiselessly observed entries."""
        if not (known := self.bound.observed_entries()):
            return {name: (jnp.zeros(x.shape, bool), x) for name, x in self.bound.origin().items()}
        return {
            name: (mask, jnp.where(mask, self.models[name].to_model(value), 0))
            for name, (mask, value) in known.items()
        }

    def clamp(self, x_0: Values) -> Values:
        """Set the noiselessly observed entries of x_0 (model units) to their values."""
        known = self.observed_entries()
        return {name: jnp.where(*known[name], x) for name, x in x_0.items()}

    def log_noiseless_units(self) -> Float[Array, ""]:
        """Return log|d user / d model| of noiseless entries; model-unit densities exclude it."""
        total = jnp.zeros(())
        for name, (mask, value) in self.observed_entries().items():
            model = self.models[name]
            if self.has_noiseless and not model.process.support.is_discrete:
                # `to_user` is elementwise: one JVP is the diagonal of its Jacobian.
                slope = jax.jvp(model.to_user, (value,), (jnp.ones_like(value),))[1]
                total = total + jnp.sum(jnp.where(mask, jnp.log(jnp.abs(slope)), 0.0))
        return total

    # Latent sites -------------------------------------------------------------------------------

    @property
    def num_latents(self) -> int:
        """Dimension of u."""
        return sum(math.prod(shape) for shape in self.bound.traces.latents.values())

    def draw_latents(self, key: Array) -> tuple[Float[Array, " p"], Float[Array, ""]]:
        """Draw unconstrained latents from their prior; also return their log-density."""
        drawn, log_density = self.bound.draw_latents(key)
        parts = [jnp.ravel(drawn[name]).astype(float) for name in self.bound.traces.latents]
        return jnp.concatenate([jnp.zeros(0), *parts]), log_density

    def log_prior(self, latents: Float[Array, " p"]) -> Float[Array, ""]:
        """Return the log-density of the distribution of `draw_latents`."""
        evaluation = self.evaluate(self.bound.origin(), latents)
        return sum(evaluation.log_priors.values(), jnp.zeros(()))

    def unravel(self, latents: Float[Array, " p"]) -> Values:
        """Split a vector of unconstrained latents by site."""
        values, start = {}, 0
        for name, shape in self.bound.traces.latents.items():
            values[name] = latents[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return values

    # The likelihood -----------------------------------------------------------------------------

    def evaluate(self, x_0: Values, latents: Array) -> Evaluation:
        """Evaluate the program at one value of its latent sites."""
        return self.bound.evaluate(x_0, self.unravel(latents))

    def draw(self, key: Array, x_0: Values, latents: Array) -> Evaluation:
        """Evaluate the program with new draws of its free sites."""
        return self.bound.draw(key, x_0, self.unravel(latents))

    def log_likelihood(self, x_0: Values, latents: Array) -> Float[Array, ""]:
        """Return log r(x_0, u) in nats for unconstrained u, without diffusion priors and Deltas."""
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
        """Return the observed sites with moments, and the log-density of all others.

        Args:
            x_0, latents: values at which the program is evaluated.
            noiseless: sites whose noiselessly observed entries are appended, with a small variance
                that keeps the covariance of a twist from being singular. Those of other sites then
                have no effect.
            labels: whether to include the moments of Bernoulli sites. Their variance is their
                Fisher information, but inaccurate far from the mode.
        """
        evaluation = self.evaluate(x_0, latents)
        with_moments = {
            name: moments
            for name, moments in evaluation.moments.items()
            if labels or name not in self.bound.traces.labels
        }
        rest = (d for name, d in evaluation.log_densities.items() if name not in with_moments)
        log_rest = sum((jnp.sum(density) for density in rest), jnp.zeros(()))
        found = list(with_moments.values())
        if noiseless and self.has_noiseless:
            found.append(self._noiseless_moments(x_0, noiseless))
        return concatenate_moments(found, log_rest)

    def num_observed(self) -> int:
        """Return the number of values in `observations`, including noiseless ones."""

        def value() -> Array:
            latents = jnp.zeros(self.num_latents)
            return self.observations(self.bound.origin(), latents, noiseless=self.sites()).value

        return jax.eval_shape(value).size

    def is_ignored(self, names: tuple[str, ...]) -> Bool[Array, " k"]:
        """Return which entries of Deltas are masked or belong to sites not in `names`."""
        noiseless = self.bound.noiseless
        if noiseless is None:
            return jnp.zeros(0, bool)
        shapes = self.structure.shapes
        is_named = {name: jnp.full(shape, name in names) for name, shape in shapes.items()}
        return ~(noiseless.visible & noiseless.gather(is_named, shapes))

    def _noiseless_moments(self, x_0: Values, names: tuple[str, ...]) -> Moments:
        noiseless, shapes = self.bound.noiseless, self.structure.shapes
        assert noiseless is not None
        known = {name: value for name, (_, value) in self.observed_entries().items()}
        least = self.map_sites(lambda model, x: jnp.full(x.shape, _least_variance(model)), x_0)
        value, mean, variance = (noiseless.gather(each, shapes) for each in (known, x_0, least))
        without = self.is_ignored(names)
        # Entries without effect have the density N(0; 0, 1), which the constant cancels.
        constant = 0.5 * math.log(2 * math.pi) * jnp.sum(without)
        mean, value = (jnp.where(without, 0.0, x) for x in (mean, value))
        return Moments(value, mean, jnp.where(without, 1.0, variance), constant)


@eqx.filter_jit
def _networks_at_origin(bound: BoundProgram) -> Networks:
    latents = {name: jnp.zeros(shape) for name, shape in bound.traces.latents.items()}
    evaluation = bound.evaluate(bound.origin(), latents)
    return {name: bound.model(evaluation, name) for name in bound.structure.shapes}


def _least_variance(model: DiffusionModel) -> Float[Array, ""]:
    """Return the variance of noiseless entries in a twist: positive, far below the final step's."""
    schedule = model.process.schedule
    return _MIN_VARIANCE_SHARE * schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1]
