"""Roles of the sites of a program, and dependences between them.

Dependences are computed from jaxprs (`numpyro.ops.provenance`), not from the order of the sites in
the program. They determine

* the *free* sites: unobserved sites on which no observed site depends, drawn after inference;
* the *stages* of the diffusion sites: a site whose network or context depends on another diffusion
  site is run after it, conditionally on its x_0;
* the latent sites that change a network, and are therefore constant along a chain.
"""

from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from numpyro.distributions import Distribution

from .moments import log_density
from .noiseless import shown
from .program import Site, Trace, diffusion_distribution, is_noiseless, is_open

Names = frozenset[str]


class DiffusionSite(NamedTuple):
    """One `numpyro.sample(name, model(...))`.

    Attributes:
        name: name of the site.
        shape: shape of a draw.
        stage: 0 for a site whose kernels depend on no other diffusion site; otherwise one more than
            the highest stage of those that they depend on.
        varies: whether its network or context depends on a latent or diffusion site.
        latents: the latent sites that its network or context depends on.
    """

    name: str
    shape: tuple[int, ...]
    stage: int
    varies: bool
    latents: tuple[str, ...]


@final
class Structure(eqx.Module):
    """The sites of a program by their roles; all fields are static.

    Attributes:
        diffusion: diffusion sites, sorted by name as in the dictionaries of JAX.
        latents: unobserved continuous sites to infer.
        free: unobserved sites on which no observed site depends.
        observed: sites with observations, and factors.
        noiseless: observed sites that are Deltas.
        fixed: sites whose value is set by `handlers.substitute` in the program; their density is
            part of the likelihood.
        deterministic: sites of `numpyro.deterministic`, and unobserved Deltas.
        checkable: observed sites whose value and support depend on no latent or diffusion site.
    """

    diffusion: tuple[DiffusionSite, ...] = eqx.field(static=True)
    latents: tuple[str, ...] = eqx.field(static=True)
    free: tuple[str, ...] = eqx.field(static=True)
    observed: tuple[str, ...] = eqx.field(static=True)
    noiseless: tuple[str, ...] = eqx.field(static=True)
    fixed: tuple[str, ...] = eqx.field(static=True)
    deterministic: tuple[str, ...] = eqx.field(static=True)
    checkable: tuple[str, ...] = eqx.field(static=True)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the diffusion sites."""
        return {site.name: site.shape for site in self.diffusion}

    @property
    def num_stages(self) -> int:
        """Number of sequential stages of the diffusion sites."""
        return 1 + max(site.stage for site in self.diffusion)

    @property
    def latents_change_networks(self) -> bool:
        """Whether some network or context depends on a latent site."""
        return any(site.latents for site in self.diffusion)

    def stage(self, number: int) -> tuple[str, ...]:
        """Return the names of the diffusion sites of one stage."""
        return tuple(site.name for site in self.diffusion if site.stage == number)


class Roles(NamedTuple):
    """Names of the sites by their role; see `Structure`."""

    diffusion: tuple[str, ...]
    latents: tuple[str, ...]
    free: tuple[str, ...]
    observed: tuple[str, ...]
    noiseless: tuple[str, ...]
    fixed: tuple[str, ...]
    deterministic: tuple[str, ...]
    checkable: tuple[str, ...]


# Roles and stages -------------------------------------------------------------------------------


def dependences(trace: Trace) -> dict[str, PyTree]:
    """Return the arrays of a trace whose provenance determines the roles; see `find_roles`."""
    densities, models, processes, scalings, locations, checks = {}, {}, {}, {}, {}, {}
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        found = diffusion_distribution(site["fn"])
        if found is not None:
            model = found.model
            models[name] = _arrays((model, found.context))
            processes[name], scalings[name] = _arrays(model.process), _arrays(model.scaling)
            continue
        if is_noiseless(site["fn"]) and not site["is_observed"]:
            continue  # an unobserved Delta is a deterministic site
        # The log-density may not depend on parameters of the support, as inside a uniform interval.
        densities[name] = [log_density(site), *_arrays(site["fn"])]
        if is_noiseless(site["fn"]):
            locations[name] = shown(site)["location"]
        if site["is_observed"]:
            checks[name] = [site["value"], *_arrays(site["fn"].support)]
    return {
        "density": densities,
        "model": models,
        "process": processes,
        "scaling": scalings,
        "location": locations,
        "check": checks,
    }


def find_roles(trace: Trace, provenance: dict[str, PyTree[Names]]) -> Roles:
    """Return the roles of all sites.

    Args:
        trace: trace of the program.
        provenance: provenance of `dependences(trace)`, as names of open sites.

    Raises:
        ValueError: a site is not supported; the message names it and the remedy.
    """
    # on[kind][name]: the open sites on which arrays of this kind depend at site `name`.
    on = {kind: {n: _union(p) for n, p in parts.items()} for kind, parts in provenance.items()}
    diffusion = tuple(sorted(name for name in on["model"] if is_open(trace[name])))
    _check_sites(trace, diffusion, on)
    open_sites = [name for name in on["density"] if is_open(trace[name])]
    fixed_sites = [name for name in on["density"] if name not in open_sites]
    # The latents of a network are inferred even if no observation depends on its site.
    ancestors = _ancestors({**on["density"], **on["model"]}, [*fixed_sites, *diffusion])
    latents = tuple(name for name in open_sites if name in ancestors)
    for name in latents:
        _check_latent(name, trace[name]["fn"])
    observed = tuple(name for name in fixed_sites if trace[name]["is_observed"])
    return Roles(
        diffusion=diffusion,
        latents=latents,
        free=tuple(name for name in open_sites if name not in ancestors),
        observed=observed,
        noiseless=tuple(name for name in observed if name in on["location"]),
        fixed=tuple(name for name in fixed_sites if name not in observed),
        deterministic=tuple(name for name, site in trace.items() if is_deterministic(site)),
        checkable=tuple(name for name in observed if not on["check"][name]),
    )


def find_structure(
    roles: Roles, shapes: dict[str, tuple[int, ...]], models: dict[str, PyTree[Names]]
) -> Structure:
    """Return the structure of a program, with the stages of its diffusion sites.

    Args:
        roles: roles of the sites.
        shapes: shapes of the diffusion sites.
        models: provenance of the arrays and contexts of their networks, in model units and
            unconstrained coordinates.
    """
    on = {name: _union(models[name]) for name in roles.diffusion}
    stages: dict[str, int] = {}
    # The dependences are acyclic, so each pass assigns the stage of one site or more.
    for _ in roles.diffusion:
        for name in roles.diffusion:
            ancestors = on[name] & set(roles.diffusion)
            if name not in stages and ancestors <= stages.keys():
                stages[name] = 1 + max((stages[other] for other in ancestors), default=-1)
    sites = tuple(
        DiffusionSite(
            name,
            shapes[name],
            stages[name],
            varies=bool(on[name]),
            latents=tuple(sorted(on[name] & set(roles.latents))),
        )
        for name in roles.diffusion
    )
    return Structure(sites, *roles[1:])


def is_deterministic(site: Site) -> bool:
    """Return whether a site is deterministic: `numpyro.deterministic` or an unobserved Delta."""
    if site["type"] == "deterministic":
        return True
    return site["type"] == "sample" and not site["is_observed"] and is_noiseless(site["fn"])


def _arrays(tree: PyTree) -> list[Array]:
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def _union(tree: PyTree) -> Names:
    return frozenset().union(*jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, frozenset)))


def _ancestors(on: dict[str, Names], sites: list[str]) -> set[str]:
    """Return all ancestors of some sites in the graph of dependences."""
    found: set[str] = set()
    pending = {name for site in sites for name in on[site]}
    while pending:
        name = pending.pop()
        found.add(name)
        pending |= on.get(name, frozenset()) - found
    return found


# Checks -------------------------------------------------------------------------------------------


def _check_sites(trace: Trace, diffusion: tuple[str, ...], on: dict[str, dict[str, Names]]) -> None:
    for name in on["model"]:
        if trace[name]["is_observed"]:
            raise ValueError(
                f"site {name!r} is a diffusion model that is itself observed; leave it latent and "
                "observe something that depends on it (dist.Delta(x[rows]) for single entries), or "
                "use diffppl.elbo for its likelihood."
            )
    samples = sorted(name for name, site in trace.items() if site["type"] == "sample")
    if not diffusion:
        raise ValueError(
            "program has no diffusion site: no numpyro.sample(name, model()) was found among "
            f"{samples}. Use numpyro.infer.MCMC for a program without one."
        )
    if not any(trace[name]["is_observed"] for name in samples):
        raise ValueError(
            "program has no observed site, so there is nothing to condition on. Pass the data "
            "that its obs= arguments expect to run(key, ...), or use handlers.condition."
        )
    for name in diffusion:
        if sources := on["process"][name]:
            raise ValueError(
                f"the process of the diffusion model at site {name!r} depends on site "
                f"{min(sources)!r}; only its network, its context and its scaling may. Fix its "
                "schedule and its rates."
            )
    for name, sources in on["location"].items():
        if others := sources - set(diffusion):
            raise ValueError(
                f"site {name!r} is an observed Delta of something that depends on the latent site "
                f"{min(others)!r}; give it a little noise, for example "
                "numpyro.distributions.Normal(value, 0.01)."
            )
        # The observed entries must be constant in model units.
        if scaled := [site for site in sources if on["scaling"][site]]:
            raise ValueError(
                f"site {name!r} observes entries of {scaled[0]!r} without noise, but the scaling "
                "of its model depends on another site; give the observation a little noise."
            )


def _check_latent(name: str, fn: Distribution) -> None:
    if fn.support is None or fn.support.is_discrete:
        raise ValueError(
            f"site {name!r} is a discrete latent that observed sites depend on; sum it out of the "
            "program, for example with numpyro.distributions.MixtureSameFamily."
        )
