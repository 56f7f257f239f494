"""Looking at a program before any work: what cannot be handled is refused, by the site's name."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from .exact import not_a_selection
from .program import Program, Sites, diffusion_distribution, factor, run_program


def inspect_program(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sites:
    """Find the sites of a program, without running it, and refuse what cannot be handled.

    Raises:
        TypeError: the program is not callable.
        ValueError: no diffusion site; an observed one; no observed site; a latent site that is
            discrete or improper; observations that are NaN. Each names the site and the remedy.
    """
    if not callable(program):
        raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")
    holder: dict[str, Any] = {}

    def look(dynamic: Any) -> None:
        _, args, kwargs = eqx.combine(dynamic, static)
        holder["trace"] = run_program(program, args, kwargs, {})
        holder["sites"] = factor(program, args, kwargs)

    dynamic, static = eqx.partition((program, args, kwargs), eqx.is_array)
    jax.eval_shape(look, dynamic)
    trace = holder["trace"]
    # The models may be traced values of that look; what they are is of no use outside it.
    sites: Sites = eqx.filter(holder["sites"], eqx.is_array, inverse=True)
    for name in sites.observed:
        if diffusion_distribution(trace[name]["fn"]) is not None:
            raise ValueError(
                f"site {name!r} is a diffusion model that is itself observed; leave it latent and "
                "observe something that depends on it, or use diffppl.elbo for its likelihood."
            )
    if not sites.diffusion:
        raise ValueError(
            "program has no diffusion site: no numpyro.sample(name, model()) was found among "
            f"{sorted(name for name, site in trace.items() if site['type'] == 'sample')}. "
            "Use numpyro.infer.MCMC for a program without one."
        )
    if not sites.observed:
        raise ValueError(
            "program has no observed site, so there is nothing to condition on. Pass the data "
            "that its obs= arguments expect to run(key, ...), or use handlers.condition."
        )
    for name in sites.latents:
        fn = trace[name]["fn"]
        if fn.support is None or fn.support.is_discrete:
            raise ValueError(
                f"site {name!r} is a discrete latent; sum it out of the program, for example with "
                "numpyro.distributions.MixtureSameFamily."
            )
    for name, missing in _missing(dynamic, static, sites.observed).items():
        if bool(missing):
            raise ValueError(
                f"the observation at site {name!r} has NaN values; select the entries that were "
                "seen and observe only those."
            )
    if sites.exact and bool(_not_selected(dynamic, static, sites)):
        raise ValueError(
            f"site {sites.exact[0]!r} is an observed Delta of something else than entries of a "
            "diffusion site, so no draw could ever agree with it; give it a little noise, for "
            "example numpyro.distributions.Normal(value, 0.01)."
        )
    return sites


@eqx.filter_jit
def _missing(dynamic: Any, static: Any, observed: tuple[str, ...]) -> dict[str, Array]:
    """Whether the value of each observed site has a NaN that no mask hides."""
    program, args, kwargs = eqx.combine(dynamic, static)
    trace = run_program(program, args, kwargs, {})
    return {
        name: jnp.any(jnp.isnan(trace[name]["value"]))
        for name in observed
        if not isinstance(trace[name]["fn"], dist.MaskedDistribution)
    }


@eqx.filter_jit
def _not_selected(dynamic: Any, static: Any, sites: Sites) -> Array:
    program, args, kwargs = eqx.combine(dynamic, static)
    return not_a_selection(program, args, kwargs, sites)
