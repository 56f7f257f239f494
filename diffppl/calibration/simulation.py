"""Simulation of a program from its prior, and evaluation of the test quantities."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

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
from ..model import respaced
from ..samplers import AbstractSampler

LARGE = 32
"""Number of coordinates above which a site is projected on random directions, and their number."""


class Simulator(NamedTuple):
    """A traced simulation of a program from its prior, data included; called with a key.

    Attributes:
        draw: function of a key and the inputs.
        inputs: array inputs of the program.
        diffusion: names of the diffusion sites.
    """

    draw: Traced
    inputs: PyTree
    diffusion: tuple[str, ...]

    def __call__(self, key: Array) -> Values:
        """Draw every sample site, in the user's units."""
        return self.draw(key, self.inputs)


def simulator(
    program: Program,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    sampler: AbstractSampler | None = None,
    num_steps: int | None = None,
) -> Simulator:
    """Return a simulator of a program and its data.

    Args:
        program, args, kwargs: the program and its arguments, without its data.
        sampler: sampler of the diffusion sites; they are set to zero if None.
        num_steps: length of their chains; that of the model if None.

    Raises:
        ValueError: a site is already observed.
    """

    def make(arguments: Arguments) -> Simulator:
        return _simulator(program, arguments, sampler, num_steps)

    return traced(make, Arguments(args, kwargs, {}))


def _simulator(
    program: Program, arguments: Arguments, sampler: AbstractSampler | None, num_steps: int | None
) -> Simulator:
    diffusion_names: list[str] = []  # collected when `draw` is traced

    def draw(key: Array, inputs: PyTree) -> Values:
        key_program, key_sites = jax.random.split(key)
        site_numbers = itertools.count()

        def fill(site: Site) -> Array | None:
            diffusion = diffusion_distribution(site["fn"])
            if diffusion is None:
                return None
            diffusion_names.append(site["name"])
            model, shape = diffusion.model, site_shape(site)
            if sampler is None:
                return model.to_user(jnp.zeros(shape, model.process.dtype))
            sampler.check(model)
            model = respaced(model, num_steps)
            # Keys by the order of sites, which is the same in every execution of the program.
            site_key = jax.random.fold_in(key_sites, next(site_numbers))
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
    return Simulator(function, arguments.inputs, tuple(diffusion_names))


def quantities_at(
    key_directions: Array, bound: BoundProgram, values: Values, quantities: Traced | None
) -> Values:
    """Evaluate all test quantities at one value of the unobserved sites, in the user's units.

    Args:
        key_directions: key of the directions of large sites.
        bound: the program and its data.
        values: values of every unobserved site.
        quantities: the user's quantities, a function of the values and the deterministic sites.
    """
    dependences = bound.traces.dependences(bound.inputs, values)
    structure = bound.structure
    terms = (
        jnp.sum(density)
        for name, density in dependences["log_densities"].items()
        if name not in structure.noiseless  # a noiseless observation has no density
    )
    sites = ranked_sites(bound, values, dependences["deterministic"])
    ranked = {"log_likelihood": sum(terms, jnp.zeros(()))}
    for number, (name, x) in enumerate(sorted(sites.items())):
        if x.size > LARGE:
            # The same key in every simulation; with the scale 1/sqrt(d) the projection of
            # independent coordinates has their variance.
            key = jax.random.fold_in(key_directions, number)
            directions = jax.random.normal(key, (LARGE, x.size)) / math.sqrt(x.size)
            ranked[f"{name}_directions"] = directions @ jnp.ravel(x).astype(float)
        else:
            ranked[name] = x
    return ranked | ({} if quantities is None else quantities(sites))


def ranked_sites(bound: BoundProgram, values: Values, deterministic: Values) -> Values:
    """Return the sites of a program that are ranked: all except the observed ones."""
    structure = bound.structure
    names = (*structure.shapes, *structure.latents, *structure.free)
    return {name: values[name] for name in names} | deterministic


def traced_quantities(
    function: Callable[[Values], Mapping[str, ArrayLike]], bound: BoundProgram, example: Values
) -> Traced:
    """Trace the user's quantities as a function of the ranked sites.

    Raises:
        TypeError: the function does not return a dictionary.
        ValueError: a name coincides with one that is already ranked.
    """
    dependences = bound.traces.dependences(bound.inputs, example)
    sites = ranked_sites(bound, example, dependences["deterministic"])

    def checked(sites: Values) -> Values:
        result = function(sites)
        if not isinstance(result, dict):
            raise TypeError(f"quantities returned {type(result).__name__}; it must return a dict.")
        taken = {"log_likelihood", *sites, *(f"{name}_directions" for name in sites)}
        if both := sorted(taken & result.keys()):
            raise ValueError(f"quantities returned {both}, which are ranked already; rename them.")
        return {name: jnp.asarray(x) for name, x in result.items()}

    return Traced(checked, sites)
