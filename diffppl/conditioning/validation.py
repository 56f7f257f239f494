"""Checks of the values of a bound program before inference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .bound import BoundProgram, locations
from .compilation import jit_quickly
from .keys import split
from .noiseless import num_entries, split_entries
from .program import Program, Values

_NUM_DRAWS = 16  # prior draws, at which log-densities must not all be NaN


def bind(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundProgram:
    """Bind a program to its data and check it; see `BoundProgram` and `check_observations`."""
    bound = BoundProgram(program, args, kwargs)
    check_observations(bound)
    return bound


def check_observations(bound: BoundProgram) -> None:
    """Check that observations are finite, in their support, and possible under the program.

    Raises:
        ValueError: unmasked values are NaN, infinite or outside the support; a noise scale is 0;
            an observed Delta is not of entries of diffusion sites, has a value outside the support,
            or contradicts another; or a log-density is NaN at all prior draws. The message names
            the site and the remedy.
    """
    found = jax.device_get(_inspect(jax.random.key(0), bound))
    for name, counts in found["faults"].items():
        _check_values(name, counts)
    _check_noiseless(bound, found["shown"])
    for name, is_zero in found["zero_noise"].items():
        if is_zero:
            raise ValueError(
                f"site {name!r} has noise of scale 0; observe entries of a diffusion site without "
                "noise by numpyro.distributions.Delta(x[rows]), or give the noise a scale above 0."
            )
    for name, share in found["nan"].items():
        if share == 1:  # at single draws NaN is permitted: such particles have weight zero
            raise ValueError(
                f"the log-density of site {name!r} is NaN at every draw of the prior; look for NaN "
                "in covariates and other data that the site depends on, and for parameters "
                "outside of their range."
            )


@jit_quickly(optimization_level=0)
def _inspect(key: Array, bound: BoundProgram) -> dict[str, PyTree]:
    """Compute all checked quantities in one compiled call."""
    structure, traces = bound.structure, bound.traces
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in traces.shapes.items()}
    counts = traces.dependences(bound.inputs, zeros)["faults"]
    shown = []
    if structure.noiseless:
        # Evaluated at two numberings of the entries, to distinguish selection from other functions.
        numbers = np.arange(num_entries(structure.shapes))
        shown = [locations(traces, bound.inputs, each) for each in (numbers, numbers[::-1])]

    def draw(key: Array, x_0: Values) -> tuple[dict[str, Array], dict[str, Array]]:
        evaluation = bound.evaluate(x_0, bound.draw_latents(key)[0])
        nan = {n: jnp.any(jnp.isnan(x)) for n, x in evaluation.log_densities.items()}
        zero_noise = {
            n: jnp.any(m.spread == 0) for n, m in evaluation.moments.items() if m.spread.ndim == 1
        }
        return nan, zero_noise

    keys = jax.random.split(key, 1 + _NUM_DRAWS)
    nan, zero_noise = jax.vmap(draw)(keys[1:], _draw_reference(keys[0], bound.origin()))
    return {
        "faults": {name: counts[name] for name in structure.checkable},
        "shown": shown,
        "nan": jax.tree.map(jnp.mean, nan),
        "zero_noise": jax.tree.map(jnp.all, zero_noise),
    }


def _draw_reference(key: Array, x_0: Values) -> Values:
    """Draw standard normal values for real data; return the state 0 for discrete data."""

    def draw(key: Array, x: Array) -> Array:
        shape = (_NUM_DRAWS, *x.shape)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.random.normal(key, shape, x.dtype)
        return jnp.broadcast_to(x, shape)

    return {
        name: draw(key, x) for key, (name, x) in zip(split(key, len(x_0)), x_0.items(), strict=True)
    }


def _check_values(name: str, counts: dict[str, np.ndarray]) -> None:
    remedies = {
        "NaN": "select the observed entries, or mask the others by obs_mask= or "
        "numpyro.handlers.mask",
        "infinite": "remove or mask them",
        "outside": "check the values and the distribution",
    }
    for fault, remedy in remedies.items():
        if count := int(counts.get(fault, 0)):
            what = "outside the support of its distribution" if fault == "outside" else fault
            raise ValueError(
                f"the observation at site {name!r} has {count} value{'s' * (count > 1)} that "
                f"{'are' if count > 1 else 'is'} {what}; {remedy}."
            )


def _check_noiseless(bound: BoundProgram, shown: list[dict[str, dict[str, np.ndarray]]]) -> None:
    if not shown:
        return
    structure, total = bound.structure, num_entries(bound.structure.shapes)
    first, second = shown
    owners: dict[int, tuple[str, np.number]] = {}
    for name in structure.noiseless:
        number, value, visible = (first[name][part] for part in ("location", "value", "visible"))
        is_whole = number == np.round(number)
        is_entry = (number >= 0) & (number < total)
        # The second numbering is reversed, and a selection commutes with it.
        is_entry &= second[name]["location"] == total - 1 - number
        if np.any(visible & ~(is_whole & is_entry)):
            raise ValueError(
                f"site {name!r} is an observed Delta of something other than entries of a "
                "diffusion site, which almost no draw matches; give it a little noise, for "
                "example numpyro.distributions.Normal(value, 0.01)."
            )
        for entry, each in zip(number[visible].astype(int), value[visible], strict=True):
            other, first_value = owners.setdefault(int(entry), (name, each))
            if first_value != each:
                raise ValueError(
                    f"sites {other!r} and {name!r} observe the same entry without noise, as "
                    f"{first_value:g} and as {each:g}; remove one of them, or give both a little "
                    "noise."
                )
    numbers = np.zeros(total)
    for entry, (_, each) in owners.items():
        numbers[entry] = each
    evaluation = bound.evaluate(bound.origin(), _zeros(bound))
    for site, values in split_entries(structure.shapes, jnp.asarray(numbers)).items():
        process = bound.model(evaluation, site)[0].process
        if not process.support.is_discrete:
            continue
        impossible = ~np.asarray(process.support(values)) | (np.asarray(values) % 1 != 0)
        if np.any(impossible):
            raise ValueError(
                f"an observed Delta of site {site!r} has the value "
                f"{float(np.asarray(values)[impossible][0]):g}, which is not a state of "
                f"{type(process).__name__}: its states are {process.support}."
            )


def _zeros(bound: BoundProgram) -> Values:
    return {name: jnp.zeros(shape) for name, shape in bound.traces.latents.items()}
