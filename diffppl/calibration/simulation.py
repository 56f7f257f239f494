"""Data sets drawn from a program's own prior, and everything that is ranked in one of them."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..conditioning.arguments import Arguments, traced
from ..conditioning.bound import BoundProgram
from ..conditioning.program import (
    Program,
    Site,
    Values,
    diffusion_distribution,
    execute,
    is_observed,
    site_shape,
)
from ..conditioning.traced import Traced
from ..samplers import AbstractSampler

LARGE = 32
"""Coordinates above which a site enters along random directions."""


class Simulator(NamedTuple):
    """A program drawn from its prior, data and all; called with a key, every sample site.

    Attributes:
        draw: of a key and the inputs.
        inputs: of the program.
        diffusion: names of the diffusion sites.
    """

    draw: Traced
    inputs: Any
    diffusion: tuple[str, ...]

    def __call__(self, key: Array) -> Values:
        """Every sample site, in the user's units."""
        return self.draw(key, self.inputs)


def simulator(
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sampler: AbstractSampler | None = None,
    num_steps: int | None = None,
) -> Simulator:
    """A program that draws its data.

    Args:
        program, args, kwargs: the program, without its data.
        sampler: how diffusion sites are drawn; zeros stand for them if it is None.
        num_steps: of their chains.

    Raises:
        ValueError: a site that is observed already.
    """

    def make(arguments: Arguments) -> Simulator:
        return _simulator(program, arguments, sampler, num_steps)

    return traced(make, Arguments(args, kwargs, {}))


def _simulator(
    program: Program, arguments: Arguments, sampler: AbstractSampler | None, num_steps: int | None
) -> Simulator:
    found: list[str] = []

    def draw(key: Array, inputs: Any) -> Values:
        key_program, key_sites = jax.random.split(key)
        numbers = itertools.count()

        def fill(site: Site) -> Array | None:
            diffusion = diffusion_distribution(site["fn"])
            if diffusion is None:
                return None
            found.append(site["name"])
            model, shape = diffusion.model, site_shape(site)
            if sampler is None:
                return model.to_user(jnp.zeros(shape, model.process.dtype))
            model = sampler.prepare(model.respace(num_steps or model.num_steps))
            site_key = jax.random.fold_in(key_sites, next(numbers))
            key_base, key_chain = jax.random.split(site_key)
            x_T = jnp.asarray(model.process.base(shape).sample(key_base))
            x_0, _ = sampler.draw(key_chain, model, x_T, diffusion.context, keep_path=False)
            return model.to_user(x_0)

        trace = execute(key_program, program, arguments, inputs, fill)
        for name, site in trace.items():
            if is_observed(site):
                raise ValueError(
                    f"site {name!r} is observed already, or a numpyro.factor: calibrate draws all "
                    "data from the program itself, so leave them out of the call (None), and write "
                    "factors as observed sites."
                )
        return {
            name: jnp.asarray(site["value"])
            for name, site in trace.items()
            if site["type"] == "sample"
        }

    function = Traced(draw, jax.random.key(0), arguments.inputs)
    return Simulator(function, arguments.inputs, tuple(found))


def quantities_at(
    key_directions: Array, bound: BoundProgram, values: Values, quantities: Traced | None
) -> Values:
    """Everything that is ranked, at one value of the open sites in the user's units.

    Args:
        key_directions: for the directions of large sites.
        bound: the program and its data.
        values: of every open site.
        quantities: of the user, as a function of the values and the deterministic sites.
    """
    found = bound.traces.dependences(bound.inputs, values)
    structure = bound.structure
    terms = (
        jnp.sum(density)
        for name, density in found["log_densities"].items()
        if name not in structure.noiseless  # without noise there is no density
    )
    sites = ranked_sites(bound, values, found["deterministic"])
    ranked = {"log_likelihood": sum(terms, jnp.zeros(()))}
    for number, (name, x) in enumerate(sorted(sites.items())):
        if x.size > LARGE:
            key = jax.random.fold_in(key_directions, number)
            directions = jax.random.normal(key, (LARGE, x.size)) / math.sqrt(x.size)
            ranked[f"{name}_directions"] = directions @ jnp.ravel(x).astype(float)
        else:
            ranked[name] = x
    return ranked | ({} if quantities is None else quantities(sites))


def ranked_sites(bound: BoundProgram, values: Values, deterministic: Values) -> Values:
    """The sites of a program that are ranked: all but its data."""
    structure = bound.structure
    names = (*structure.shapes, *structure.latents, *structure.free)
    return {name: values[name] for name in names} | deterministic


def traced_quantities(function: Any, bound: BoundProgram, example: Values) -> Traced:
    """The user's quantities as a function of the ranked sites.

    Raises:
        TypeError: they are no dictionary.
        ValueError: a name that is ranked already.
    """
    found = bound.traces.dependences(bound.inputs, example)
    sites = ranked_sites(bound, example, found["deterministic"])

    def checked(sites: Values) -> Values:
        wanted = function(sites)
        if not isinstance(wanted, dict):
            raise TypeError(f"quantities returned {type(wanted).__name__}; it must return a dict.")
        taken = {"log_likelihood", *sites, *(f"{name}_directions" for name in sites)}
        if both := sorted(taken & wanted.keys()):
            raise ValueError(f"quantities returned {both}, which are ranked already; rename them.")
        return {name: jnp.asarray(x) for name, x in wanted.items()}

    return Traced(checked, sites)
