"""Finding the diffusion sites of a NumPyro program, its other latents and its observations."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import Distribution, ExpandedDistribution, Independent

from ..distribution import DiffusionDistribution
from ..model import DiffusionModel

Values = dict[str, Array]
Program = Callable[..., Any]


@final
class DiffusionSite(eqx.Module):
    """One `numpyro.sample(name, model(...))` of a program."""

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    model: DiffusionModel
    depends_on_latents: bool = eqx.field(static=True)


def unwrapped(fn: Any) -> Any:
    """The distribution under `expand`, plates and `to_event`."""
    while isinstance(fn, ExpandedDistribution | Independent):
        fn = fn.base_dist
    return fn


def diffusion_distribution(fn: Distribution) -> DiffusionDistribution | None:
    """The diffusion distribution at a site, if there is one."""
    found = unwrapped(fn)
    return found if isinstance(found, DiffusionDistribution) else None


def is_exact(fn: Any) -> bool:
    """Whether an observation of this distribution has no noise: a Delta, masked or not."""
    return isinstance(unwrapped(getattr(fn, "base_dist", fn)), dist.Delta)


@final
class Sites(eqx.Module):
    """What a program is made of: diffusion sites, other latents, observed sites.

    `exact` are those of the observed sites that have no noise.
    """

    diffusion: dict[str, DiffusionSite]
    latents: tuple[str, ...] = eqx.field(static=True)
    observed: tuple[str, ...] = eqx.field(static=True)
    exact: tuple[str, ...] = eqx.field(static=True)
    deterministic: tuple[str, ...] = eqx.field(static=True)


def _placeholder(site: dict[str, Any]) -> Array | None:
    """Zeros for a diffusion site, so that looking at a program runs no chain."""
    if site["type"] != "sample" or site["is_observed"]:
        return None
    if isinstance(site["fn"], dist.ImproperUniform):
        name = site["name"]
        raise ValueError(  # noqa: TRY004 (the program is at fault, not a type)
            f"site {name!r} has an improper prior; give it a proper one."
        )
    found = diffusion_distribution(site["fn"])
    if found is None:
        return None
    return jnp.zeros(site["fn"].shape(), found.model.process.dtype)


def draw_program(
    key: Array, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values
) -> dict[str, Any]:
    """The program's trace with some sites fixed; diffusion sites are zero if they are not."""

    def value(site: dict[str, Any]) -> Array | None:
        return values[site["name"]] if site["name"] in values else _placeholder(site)

    fixed = handlers.substitute(handlers.seed(program, key), substitute_fn=value)
    return handlers.trace(fixed).get_trace(*args, **kwargs)


def run_program(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values
) -> dict[str, Any]:
    """`draw_program` where no draw counts: the sites that matter are fixed, or observed."""
    return draw_program(jax.random.key(0), program, args, kwargs, values)


def factor(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sites:
    """Find the sites of a program. Works inside and outside compiled code."""
    trace = run_program(program, args, kwargs, {})
    diffusion, latents, observed, deterministic = {}, [], [], []
    for name, site in trace.items():
        if site["type"] == "deterministic":
            deterministic.append(name)
        if site["type"] != "sample":
            continue
        found = diffusion_distribution(site["fn"])
        if site["is_observed"]:
            observed.append(name)
        elif found is not None:
            # Latents that come before could feed the context; trace order is a safe guide.
            depends = found.context is not None and bool(latents)
            diffusion[name] = DiffusionSite(name, site["fn"].shape(), found.model, depends)
        else:
            latents.append(name)
    exact = tuple(name for name in observed if is_exact(trace[name]["fn"]))
    # In the order of names, which JAX gives every dictionary that it takes apart.
    diffusion = dict(sorted(diffusion.items()))
    return Sites(diffusion, tuple(latents), tuple(observed), exact, tuple(deterministic))


def predictive(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites
) -> Callable[[Array, Values], Values]:
    """A function that draws the observed sites anew, given one posterior draw.

    Observed sites are un-observed by replaying the program with their distributions' samples.
    """

    def draw(key: Array, values: Values) -> Values:
        key_program, *keys = jax.random.split(key, 1 + len(sites.observed))
        trace = draw_program(key_program, program, args, kwargs, values)
        drawn = {}
        for name, site_key in zip(sites.observed, keys, strict=True):
            fn = trace[name]["fn"]
            if not isinstance(fn, dist.Unit):
                drawn[name] = fn.sample(site_key)
        return drawn

    return draw


def as_dynamic(tree: Any) -> Any:
    """Python floats to arrays, so that a new value does not compile anew."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, tree)
