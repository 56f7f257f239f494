"""The density that a program defines, for use inside compiled code.

A program's joint density is p(x_0) r(x_0, u): a diffusion prior for every diffusion site, times all
that the rest of the program says, the *likelihood* r. It covers observed sites, `numpyro.factor`
and the priors of the other latent sites u.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions.transforms import biject_to

from ..model import DiffusionModel
from .program import (
    Program,
    Sites,
    Values,
    diffusion_distribution,
    draw_program,
    factor,
    run_program,
    unwrapped,
)


class Observations(NamedTuple):
    """The observed sites that have a mean and a variance, flattened side by side.

    `value` and `mean` have shape `(m,)`, `covariance` `(m, m)`; `log_rest` is the log-density of
    everything else the program says.
    """

    value: Float[Array, " m"]
    mean: Float[Array, " m"]
    covariance: Float[Array, "m m"]
    log_rest: Float[Array, ""]


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

    def contexts(self, latents: Array) -> dict[str, Array | None]:
        """Context of each diffusion site, which the program may compute from other latents."""
        if all(model.context_shape is None for model in self.models().values()):
            return dict.fromkeys(self.models())
        trace = self._trace(self.constrain(latents))
        found = {name: diffusion_distribution(trace[name]["fn"]) for name in self.models()}
        return {name: None if fn is None else fn.context for name, fn in found.items()}

    def to_user(self, x_0: Values) -> Values:
        """Every diffusion site in the user's units."""
        return self.map_sites(lambda model, x: model.to_user(x), x_0)

    # Other latents ----------------------------------------------------------------------------

    def _trace(self, values: Values) -> dict[str, Any]:
        return run_program(self.program, self.args, self.kwargs, values)

    def _unconstrained(self, trace: dict[str, Any]) -> Values:
        return {name: t.inv(trace[name]["value"]) for name, t in self.transforms.items()}

    def prior_latents(self, key: Array) -> tuple[Float[Array, " p"], Float[Array, ""]]:
        """Draw the other latents from their prior; the vector, and its constrained log-density."""
        trace = draw_program(key, self.program, self.args, self.kwargs, {})
        log_density = sum((_log_prob(trace[name]) for name in self.sites.latents), jnp.zeros(()))
        return ravel_pytree(self._unconstrained(trace))[0], log_density

    def constrain(self, latents: Array) -> Values:
        """The other latents by name, in their own support."""
        values = self.unravel(latents)
        return {name: transform(values[name]) for name, transform in self.transforms.items()}

    def log_jacobian(self, latents: Array) -> Float[Array, ""]:
        """log|d constrained / d unconstrained| of the other latents."""
        values = self.unravel(latents)
        terms = (
            jnp.sum(transform.log_abs_det_jacobian(values[name], transform(values[name])))
            for name, transform in self.transforms.items()
        )
        return sum(terms, jnp.zeros(()))

    # The likelihood -----------------------------------------------------------------------------

    def evaluate(self, x_0: Values, latents: Array) -> dict[str, Any]:
        """The program's trace at x_0 (model units) and the other latents."""
        return self._trace({**self.to_user(x_0), **self.constrain(latents)})

    def log_likelihood(self, x_0: Values, latents: Array) -> Float[Array, ""]:
        """log r(x_0, u) in nats: everything the program says but the diffusion priors."""
        trace = self.evaluate(x_0, latents)
        return sum((_log_prob(site) for site in self._rest(trace).values()), jnp.zeros(()))

    def observations(self, x_0: Values, latents: Array) -> Observations:
        """Observed sites with a mean and a variance apart from the rest, at one x_0."""
        rest = self._rest(self.evaluate(x_0, latents))
        values, means, blocks = [jnp.zeros(0)], [jnp.zeros(0)], []
        log_rest = jnp.zeros(())
        for name, site in rest.items():
            moments = _moments(site) if name in self.sites.observed else None
            if moments is None:
                log_rest = log_rest + _log_prob(site)
                continue
            mean, covariance = moments
            shape = site["fn"].shape()
            values.append(jnp.broadcast_to(site["value"], shape).reshape(-1).astype(mean.dtype))
            means.append(mean)
            blocks.append(covariance)
        covariance = jax.scipy.linalg.block_diag(*blocks) if blocks else jnp.zeros((0, 0))
        return Observations(jnp.concatenate(values), jnp.concatenate(means), covariance, log_rest)

    def _rest(self, trace: dict[str, Any]) -> dict[str, Any]:
        return {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample" and name not in self.sites.diffusion
        }


def _log_prob(site: dict[str, Any]) -> Float[Array, ""]:
    """Log-density of one site of a trace, with its scale (subsampling) counted."""
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    log_prob = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    scale = 1.0 if site["scale"] is None else site["scale"]
    return jnp.sum(scale * log_prob)


def _moments(site: dict[str, Any]) -> tuple[Array, Array] | None:
    """Mean vector and covariance matrix of a site's distribution, flattened; None if it has none.

    Only sites on the whole real line or with finite first two moments qualify; masks and plates
    that rescale are left to the exact log-density.
    """
    fn = site["fn"]
    if site["scale"] is not None or isinstance(fn, dist.MaskedDistribution | dist.Unit):
        return None
    base = unwrapped(fn)
    shape = fn.shape()
    if isinstance(base, dist.MultivariateNormal):
        covariance: Any = base.covariance_matrix
        matrices = jnp.broadcast_to(covariance, (*shape, shape[-1]))
        blocks = matrices.reshape(-1, shape[-1], shape[-1])
        mean = jnp.broadcast_to(jnp.asarray(base.loc), shape).reshape(-1)
        return mean, jax.scipy.linalg.block_diag(*blocks)
    if isinstance(base, dist.StudentT | dist.Cauchy):
        # The inverse Fisher information of the location: finite however heavy the tails.
        df = jnp.asarray(base.df if isinstance(base, dist.StudentT) else 1.0)
        mean = jnp.asarray(base.loc)
        variance = jnp.asarray(base.scale) ** 2 * (df + 3) / (df + 1)
    elif base.support is None or base.event_dim > 0:
        return None
    else:
        try:
            mean, variance = base.mean, base.variance
        except NotImplementedError:
            return None
    mean = jnp.broadcast_to(mean, shape).reshape(-1)
    return mean, jnp.diag(jnp.broadcast_to(variance, shape).reshape(-1))
