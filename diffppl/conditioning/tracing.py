"""Traces of a program, as stored in a `BoundProgram`."""

from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, PyTree
from numpyro.distributions import Unit
from numpyro.distributions.transforms import biject_to

from ..model.distribution import DiffusionDistribution
from .arguments import Arguments
from .faults import faults
from .moments import Moments, is_label, log_density, log_prior, moments
from .noiseless import shown
from .program import (
    Fill,
    Program,
    Site,
    Trace,
    Values,
    diffusion_distribution,
    execute,
    is_noiseless,
    is_observed,
    is_open,
    site_shape,
)
from .structure import Structure, dependences, find_roles, find_structure, is_deterministic
from .traced import Skeleton, Traced, flattened

Known = dict[str, tuple[Array, Array]]


class Evaluation(NamedTuple):
    """Outputs of a program at one value of its latent sites.

    Attributes:
        values: diffusion, latent, free and deterministic sites, in the user's units.
        log_densities: log-densities of latent sites (unconstrained coordinates), observed sites and
            factors, by batch entry, in nats; diffusion sites are excluded.
        log_priors: log-densities of latent sites (unconstrained coordinates), without masks and
            scales.
        moments: moments of observed sites, where they exist.
        observed: values of the observed sites, except factors.
        models: arrays of the model of each diffusion site, without its scaling, and its context.
        scalings: arrays of the scaling of each diffusion site.
    """

    values: Values
    log_densities: Values
    log_priors: Values
    moments: dict[str, Moments]
    observed: Values
    models: dict[str, tuple[list[Array], Array | None]]
    scalings: dict[str, list[Array]]


class Traces(NamedTuple):
    """Traces of a program and static properties of its sites.

    Attributes:
        structure: roles of the sites.
        labels: observed Bernoulli sites.
        factors: observed sites of `numpyro.factor`, which have no value.
        shapes: shape and dtype of each open site in the program.
        dtypes: dtype of x_0 of each diffusion site in model units.
        latents: shape of each latent site in unconstrained coordinates.
        skeletons: static part of the model of each diffusion site.
        prior, dependences, density, predict: see `BoundProgram`.
    """

    structure: Structure
    labels: tuple[str, ...]
    factors: tuple[str, ...]
    shapes: dict[str, jax.ShapeDtypeStruct]
    dtypes: dict[str, np.dtype]
    latents: dict[str, tuple[int, ...]]
    skeletons: dict[str, tuple[Skeleton, Skeleton]]
    prior: Traced
    dependences: Traced
    density: Traced
    predict: Traced


def trace_program(program: Program, arguments: Arguments) -> tuple[Traces, PyTree]:
    """Trace a program by four executions on abstract values; also return `arguments.inputs`."""
    tracer, key = _Tracer(program, arguments), jax.random.key(0)
    inputs = arguments.inputs
    prior = Traced(tracer.prior, key, inputs)
    values = {name: jnp.zeros(x.shape, x.dtype) for name, x in tracer.shapes.items()}
    traced_dependences = Traced(tracer.dependences, inputs, values)
    provenance = traced_dependences.provenance(_unnamed(inputs), _named(values))
    roles = find_roles(tracer.trace, provenance["on"])
    latents = {name: tracer.latents[name] for name in roles.latents}
    x_0 = {name: jnp.zeros(values[name].shape, tracer.dtypes[name]) for name in roles.diffusion}
    u = {name: jnp.zeros(shape) for name, shape in latents.items()}
    known = {name: (jnp.zeros(x.shape, bool), x) for name, x in x_0.items() if roles.noiseless}
    tracer.observed = tuple(name for name in roles.observed if name not in roles.noiseless)
    tracer.factors = tuple(n for n in roles.observed if isinstance(tracer.trace[n]["fn"], Unit))
    tracer.with_value = tuple(name for name in roles.observed if name not in tracer.factors)
    tracer.scored = (*roles.latents, *roles.fixed, *roles.observed)
    tracer.returned = (*roles.diffusion, *roles.latents, *roles.free, *roles.deterministic)
    density = Traced(tracer.density, key, inputs, x_0, u, known)
    predict = Traced(tracer.predict, key, inputs, x_0, u, known)
    provenance = density.provenance(
        _unnamed(key), _unnamed(inputs), _named(x_0), _named(u), _unnamed(known)
    )
    structure = find_structure(roles, {name: x.shape for name, x in x_0.items()}, provenance.models)
    traces = Traces(
        structure,
        tuple(tracer.labels),
        tracer.factors,
        tracer.shapes,
        tracer.dtypes,
        latents,
        tracer.skeletons,
        prior,
        traced_dependences,
        density,
        predict,
    )
    return traces, inputs


def _named(values: Values) -> dict[str, frozenset[str]]:
    return {name: frozenset({name}) for name in values}


def _unnamed(tree: PyTree) -> PyTree[frozenset[str]]:
    return jax.tree.map(lambda _: frozenset(), tree)


@final
class _Tracer:
    """Functions to trace, and static values recorded during their traces."""

    def __init__(self, program: Program, arguments: Arguments) -> None:
        self.program, self.arguments = program, arguments
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.latents: dict[str, tuple[int, ...]] = {}
        self.skeletons: dict[str, tuple[Skeleton, Skeleton]] = {}
        self.labels: list[str] = []
        self.trace: Trace = {}
        self.observed: tuple[str, ...] = ()  # without Deltas
        self.factors: tuple[str, ...] = ()
        self.with_value: tuple[str, ...] = ()
        self.scored: tuple[str, ...] = ()
        self.returned: tuple[str, ...] = ()

    def prior(self, key: Array, inputs: PyTree) -> dict[str, tuple[Array, Array]]:
        """Draw the open sites except diffusion sites, unconstrained, with their log-densities."""

        def fill(site: Site) -> Array | None:
            found = diffusion_distribution(site["fn"])
            if found is None:
                return None
            dtype = self.dtypes[site["name"]] = found.model.process.dtype
            return found.model.to_user(jnp.zeros(site_shape(site), dtype))

        drawn = {}
        for name, site in execute(key, self.program, self.arguments, inputs, fill).items():
            if not is_open(site):
                continue
            self.shapes[name] = jax.ShapeDtypeStruct(site["value"].shape, site["value"].dtype)
            support = site["fn"].support
            if diffusion_distribution(site["fn"]) or support is None or support.is_discrete:
                continue
            transform = biject_to(support)
            u = transform.inv(site["value"])
            log_det = jnp.sum(transform.log_abs_det_jacobian(u, site["value"]))
            self.latents[name] = u.shape
            drawn[name] = u, log_prior(site) + log_det
        return drawn

    def dependences(self, inputs: PyTree, values: Values) -> dict[str, PyTree]:
        """Return arrays for `find_roles`; faults and log-densities of data; deterministic sites."""

        def fill(site: Site) -> Array:
            return _at_index(site, values[site["name"]])

        self.trace = execute(jax.random.key(0), self.program, self.arguments, inputs, fill)
        observed = {name: site for name, site in self.trace.items() if is_observed(site)}
        return {
            "on": dependences(self.trace),
            "shown": {n: shown(site) for n, site in observed.items() if is_noiseless(site["fn"])},
            "faults": {n: faults(site) for n, site in observed.items()},
            "log_densities": {n: log_density(site) for n, site in observed.items()},
            "deterministic": {
                n: jnp.asarray(s["value"]) for n, s in self.trace.items() if is_deterministic(s)
            },
        }

    def density(
        self, key: Array, inputs: PyTree, x_0: Values, latents: Values, known: Known
    ) -> Evaluation:
        """Evaluate the program at one value of its latent sites."""
        log_dets: Values = {}
        found: dict[str, DiffusionDistribution] = {}
        fill = self._fill_values(x_0, latents, known, found, log_dets)
        trace = execute(key, self.program, self.arguments, inputs, fill)
        # `_fill_values` adds a factor with the log-determinant of each latent in a NumPyro loop.
        loops = [name for name in trace if name not in self.trace and is_observed(trace[name])]
        log_densities = {name: log_density(trace[name]) for name in [*self.scored, *loops]}
        log_densities |= {name: jnp.sum(log_densities[name]) + log_dets[name] for name in log_dets}
        self.labels = [name for name in self.observed if is_label(trace[name])]
        log_priors = {name: log_prior(trace[name]) for name in latents}
        log_priors |= {name: log_priors[name] + log_dets[name] for name in log_dets}
        log_priors |= {name: jnp.sum(log_densities[name]) for name in loops}
        matched = {name: moments(trace[name]) for name in self.observed}
        models, scalings = {}, {}
        for name, each in found.items():
            # Stages depend on the provenance of the network alone, so the scaling is separate.
            model = eqx.tree_at(lambda m: m.scaling, each.model, None, is_leaf=lambda x: x is None)
            leaves, skeleton = flattened(model)
            scalings[name], scaling = flattened(each.model.scaling)
            models[name], self.skeletons[name] = (leaves, each.context), (skeleton, scaling)
        return Evaluation(
            values={name: jnp.asarray(trace[name]["value"]) for name in self.returned},
            log_densities=log_densities,
            log_priors=log_priors,
            moments={name: each for name, each in matched.items() if each is not None},
            observed={name: jnp.asarray(trace[name]["value"]) for name in self.with_value},
            models=models,
            scalings=scalings,
        )

    def predict(
        self, key: Array, inputs: PyTree, x_0: Values, latents: Values, known: Known
    ) -> Values:
        """Draw the observed sites."""
        key, key_loops = jax.random.split(key)
        fill = self._fill_values(x_0, latents, known, {}, {})
        trace = execute(key, self.program, self.arguments, inputs, fill, predict=True)
        drawn = {}
        for number, name in enumerate(self.observed):
            site = trace[name]
            if isinstance(site["fn"], Unit):
                continue
            drawn[name] = jnp.asarray(site["value"])
            if site.get("_control_flow_done", False):  # a site in a loop keeps its observation
                drawn[name] = site["fn"].sample(jax.random.fold_in(key_loops, number))
        return drawn

    def _fill_values(
        self,
        x_0: Values,
        latents: Values,
        known: Known,
        found: dict[str, DiffusionDistribution],
        log_dets: Values,
    ) -> Fill:
        """Return a `Fill` for diffusion sites (x_0 in the user's units) and latent sites."""

        def fill(site: Site) -> Array | None:
            name, diffusion = site["name"], diffusion_distribution(site["fn"])
            if diffusion is not None:
                found[name] = diffusion
                x = diffusion.model.to_user(x_0[name])
                return jnp.where(*known[name], x) if name in known else x
            if name not in latents:
                return None
            u = _at_index(site, latents[name])
            transform = biject_to(site["fn"].support)
            value = transform(u)
            log_det = jnp.sum(transform.log_abs_det_jacobian(u, value))
            if site.get("in_control_flow", False):
                # A tracer of the loop body, which can be returned only by a site.
                numpyro.factor(f"_{name}_log_det", log_det)
            else:
                log_dets[name] = log_det
            return value

        return fill


def _at_index(site: Site, value: Array) -> Array:
    """Return the value of a site; in a NumPyro scan, that of the current iteration."""
    index = site["infer"].get("_scan_current_index")
    return value if index is None else value[index]
