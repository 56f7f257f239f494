"""The density that a program defines, for use inside compiled code.

A program's joint density is p(x_0) r(x_0, u): a diffusion prior for every diffusion site, times all
that the rest of the program says, the *likelihood* r. It covers observed sites, `numpyro.factor`
and the priors of the other latent sites u. Observations without noise are kept apart: they say
that some entries of x_0 are known.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from numpyro.distributions.transforms import biject_to

from ..model import DiffusionModel
from .exact import Exact, exact_entries
from .observations import Moments, Observations, is_label, log_prob, moments, side_by_side
from .program import (
    Program,
    Sites,
    Values,
    diffusion_distribution,
    draw_program,
    factor,
    run_program,
)

_SHARPEST = 0.01


@final
class Target(eqx.Module):
    """p(x_0) r(x_0, u) of one program and its data, for use inside compiled code.

    Diffusion sites are held in a dictionary by name, in model units; the other latents in one
    unconstrained vector. All methods are for one particle: map them over particles with `vmap`.
    """

    program: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sites: Sites
    exact: Exact | None
    transforms: dict[str, Any]
    num_steps: int = eqx.field(static=True)
    unravel: Callable[[Array], Values] = eqx.field(static=True)

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_steps: int | None = None,
    ) -> None:
        sites = factor(program, args, kwargs)
        lengths = [site.model.num_steps for site in sites.diffusion.values()]
        self.num_steps = min(lengths) if num_steps is None else num_steps
        self.program, self.args, self.kwargs = program, args, kwargs
        # Chains of different lengths run in step: each is read at as many of its levels.
        self.sites = eqx.tree_at(
            lambda sites: [site.model for site in sites.diffusion.values()],
            sites,
            [site.model.respace(self.num_steps) for site in sites.diffusion.values()],
        )
        self.exact = exact_entries(program, args, kwargs, sites)
        trace = self._trace({})
        self.transforms = {name: biject_to(trace[name]["fn"].support) for name in sites.latents}
        _, self.unravel = ravel_pytree(self._unconstrained(trace))

    # Diffusion sites ------------------------------------------------------------------------

    def models(self) -> dict[str, DiffusionModel]:
        """The model of each diffusion site, all with `num_steps` steps."""
        return {name: site.model for name, site in self.sites.diffusion.items()}

    def map_sites(self, function: Callable[..., Any], *values: dict[str, Any]) -> dict[str, Any]:
        """`function(model, *values)` for each diffusion site."""
        return {
            name: function(model, *(value[name] for value in values))
            for name, model in self.models().items()
        }

    def split_key(self, key: Array) -> dict[str, Array]:
        """A key of its own for each diffusion site."""
        models = self.models()
        return dict(zip(models, jax.random.split(key, len(models)), strict=True))

    def contexts(self, latents: Array) -> dict[str, Array | None]:
        """Context of each diffusion site, which the program may compute from other latents."""
        if all(model.context_shape is None for model in self.models().values()):
            return dict.fromkeys(self.models())
        trace = self._trace(self.constrain(latents))
        found = {name: diffusion_distribution(trace[name]["fn"]) for name in self.models()}
        return {name: None if fn is None else fn.context for name, fn in found.items()}

    def to_user(self, x_0: Values) -> Values:
        """Every diffusion site in the user's units; known entries are what was observed."""
        values = self.map_sites(lambda model, x: model.to_user(x), x_0)
        if self.exact is None:
            return values
        mask, known = self.exact.mask(self.sites), self.exact.values(self.sites)
        return {name: jnp.where(mask[name], known[name], x) for name, x in values.items()}

    def known(self) -> dict[str, tuple[Bool[Array, "..."], Array]]:
        """Which entries of each site were observed without noise, and what they are.

        Model units; 0 where unknown.
        """
        if self.exact is None:
            return {
                name: (jnp.zeros(site.shape, bool), jnp.zeros(site.shape, site.model.process.dtype))
                for name, site in self.sites.diffusion.items()
            }
        mask, value = self.exact.mask(self.sites), self.exact.values(self.sites)
        return {
            name: (mask[name], jnp.where(mask[name], model.to_model(value[name]), 0))
            for name, model in self.models().items()
        }

    def pinned(self, x_0: Values) -> Values:
        """The diffusion sites (model units) with their known entries set to what they are."""
        known = self.known()
        return {name: jnp.where(*known[name], x) for name, x in x_0.items()}

    def log_exact_units(self) -> Float[Array, ""]:
        """log|d user / d model| of the known entries: what their density in model units lacks."""
        total = jnp.zeros(())
        for name, (mask, value) in self.known().items():
            model = self.models()[name]
            if self.exact is not None and not model.process.support.is_discrete:
                slope = jax.jvp(model.to_user, (value,), (jnp.ones_like(value),))[1]
                total = total + jnp.sum(jnp.where(mask, jnp.log(jnp.abs(slope)), 0.0))
        return total

    # Other latents ----------------------------------------------------------------------------

    def _trace(self, values: Values) -> dict[str, Any]:
        return run_program(self.program, self.args, self.kwargs, values)

    def _unconstrained(self, trace: dict[str, Any]) -> Values:
        return {name: t.inv(trace[name]["value"]) for name, t in self.transforms.items()}

    def prior_latents(self, key: Array) -> tuple[Float[Array, " p"], Float[Array, ""]]:
        """Draw the other latents from their prior; the vector, and its constrained log-density."""
        trace = draw_program(key, self.program, self.args, self.kwargs, {})
        log_density = sum((log_prob(trace[name]) for name in self.sites.latents), jnp.zeros(()))
        return ravel_pytree(self._unconstrained(trace))[0], log_density

    def constrain(self, latents: Array) -> Values:
        """The other latents by name, in their own support."""
        values = self.unravel(latents)
        return {name: transform(values[name]) for name, transform in self.transforms.items()}

    def unconstrain(self, values: Values) -> Float[Array, " p"]:
        """The vector of the other latents that `constrain` takes to these values."""
        return ravel_pytree({name: t.inv(values[name]) for name, t in self.transforms.items()})[0]

    def log_jacobian(self, latents: Array) -> Float[Array, ""]:
        """log|d constrained / d unconstrained| of the other latents."""
        values = self.unravel(latents)
        terms = (
            jnp.sum(transform.log_abs_det_jacobian(values[name], transform(values[name])))
            for name, transform in self.transforms.items()
        )
        return sum(terms, jnp.zeros(()))

    # The likelihood -----------------------------------------------------------------------------

    def log_likelihood(self, x_0: Values, latents: Array) -> Float[Array, ""]:
        """log r(x_0, u) in nats: all that the program says but diffusion priors and Deltas."""
        rest = self._rest(x_0, latents)
        return sum((log_prob(site) for site in rest.values()), jnp.zeros(()))

    def observations(
        self, x_0: Values, latents: Array, *, exact: bool = False, labels: bool = False
    ) -> Observations:
        """Observed sites with a mean and a variance apart from the rest, at one x_0.

        With `exact`, the known entries are among them, with a variance that only keeps what a
        twist adds to it from being singular. With `labels`, so are Bernoulli sites, whose variance
        is their Fisher information but a poor guide far away.
        """
        rest = self._rest(x_0, latents)
        found, log_rest = [], jnp.zeros(())
        for name, site in rest.items():
            apart = name in self.sites.observed and (labels or not is_label(site))
            seen = moments(site) if apart else None
            if seen is None:
                log_rest = log_rest + log_prob(site)
            else:
                found.append(seen)
        if exact and self.exact is not None:
            found.append(self._exact_moments(self.exact, x_0))
        return side_by_side(found, log_rest)

    def num_observed(self) -> int:
        """How many numbers `observations` takes apart, known ones among them; on shapes alone."""

        def value(key: Array) -> Array:
            x_0 = {
                name: jnp.zeros(site.shape, site.model.process.dtype)
                for name, site in self.sites.diffusion.items()
            }
            return self.observations(x_0, self.prior_latents(key)[0], exact=True).value

        return jax.eval_shape(value, jax.random.key(0)).size

    def _exact_moments(self, exact: Exact, x_0: Values) -> Moments:
        """Value, mean and variance of the entries that Deltas show; hidden ones have no effect."""
        known = {name: value for name, (_, value) in self.known().items()}
        edge = self.map_sites(lambda model, x: jnp.full(x.shape, _least_variance(model)), x_0)
        value, mean, variance = (exact.gather(each, self.sites) for each in (known, x_0, edge))
        visible = exact.visible
        return value, jnp.where(visible, mean, value), jnp.where(visible, variance, 1.0)

    def _rest(self, x_0: Values, latents: Array) -> dict[str, Any]:
        trace = self._trace({**self.to_user(x_0), **self.constrain(latents)})
        return {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample"
            and name not in self.sites.diffusion
            and name not in self.sites.exact
        }


def _least_variance(model: DiffusionModel) -> Float[Array, ""]:
    """Of a known entry in a twist: far below what the last step leaves unsaid, but not zero."""
    schedule = model.process.schedule
    return _SHARPEST * schedule.noise()[1] / schedule.alpha_bar()[1]
