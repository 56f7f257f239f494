"""Checks of a bound program on its values, before any work."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .bound import BoundProgram, locations
from .noiseless import num_entries, split_entries
from .program import Program, Values

_NUM_DRAWS = 16  # of the prior, at which log-densities must not all be NaN


def bind(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundProgram:
    """A program bound to its data, and checked. See `BoundProgram` and `check_observations`."""
    bound = BoundProgram(program, args, kwargs)
    check_observations(bound)
    return bound


def check_observations(bound: BoundProgram) -> None:
    """Refuse observations that no draw of the program could explain.

    Raises:
        ValueError: NaN or infinite values that no mask hides; values outside the support; a noise
            of zero; Deltas of something other than entries of diffusion sites, of impossible
            values, or that contradict each other; a log-density that is NaN at every draw of the
            prior. The message names the site and the remedy.
    """
    found = jax.device_get(_inspected(jax.random.key(0), bound))
    for name, counts in found["faults"].items():
        _check_values(name, counts)
    _check_noiseless(bound, found["shown"])
    for name, sharp in found["sharp"].items():
        if sharp:
            raise ValueError(
                f"site {name!r} has noise of scale 0; observe entries of a diffusion site without "
                "noise by numpyro.distributions.Delta(x[rows]), or give the noise a scale above 0."
            )
    for name, share in found["nan"].items():
        if share == 1:
            raise ValueError(
                f"the log-density of site {name!r} is NaN at every draw of the prior; look for NaN "
                "in covariates and other data that the site depends on, and for parameters "
                "outside of their range."
            )


@eqx.filter_jit
def _inspected(key: Array, bound: BoundProgram) -> dict[str, Any]:
    """All that is checked, in one compiled call."""
    structure, traces = bound.structure, bound.traces
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in traces.shapes.items()}
    counts = traces.dependences(bound.inputs, zeros)["faults"]
    shown = {}
    if structure.noiseless:
        # Entries are numbered twice: a selection shows the numbers of the same entries both times.
        numbers = np.arange(num_entries(structure.shapes))
        shown = [locations(traces, bound.inputs, each) for each in (numbers, numbers[::-1])]

    def draw(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        key_x, key_u = jax.random.split(key)
        latents, _ = bound.draw_latents(key_u)
        evaluation = bound.evaluate(_typical(key_x, bound.origin()), latents)
        nan = {n: jnp.any(jnp.isnan(x)) for n, x in evaluation.log_densities.items()}
        sharp = {
            n: jnp.any(m.spread == 0) for n, m in evaluation.moments.items() if m.spread.ndim == 1
        }
        return nan, sharp

    nan, sharp = jax.vmap(draw)(jax.random.split(key, _NUM_DRAWS))
    return {
        "faults": {name: counts[name] for name in structure.checkable},
        "shown": shown,
        "nan": jax.tree.map(jnp.mean, nan),
        "sharp": jax.tree.map(jnp.all, sharp),
    }


def _typical(key: Array, x_0: Values) -> Values:
    """Numbers of unit variance for real data; the state 0 for discrete data."""
    keys = jax.random.split(key, len(x_0))
    return {
        name: jax.random.normal(key, x.shape, x.dtype)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else x
        for key, (name, x) in zip(keys, x_0.items(), strict=True)
    }


def _check_values(name: str, counts: dict[str, np.ndarray]) -> None:
    remedies = {
        "NaN": "select the entries that were seen, or hide the others by obs_mask= or "
        "numpyro.handlers.mask",
        "infinite": "remove them, or hide them by a mask",
        "outside": "check the values and the distribution",
    }
    for fault, remedy in remedies.items():
        if count := int(counts.get(fault, 0)):
            what = "outside the support of its distribution" if fault == "outside" else fault
            raise ValueError(
                f"the observation at site {name!r} has {count} value{'s' * (count > 1)} that "
                f"{'are' if count > 1 else 'is'} {what}; {remedy}."
            )


def _check_noiseless(bound: BoundProgram, shown: Any) -> None:
    if not shown:
        return
    structure, total = bound.structure, num_entries(bound.structure.shapes)
    first, second = shown
    owner: dict[int, tuple[str, Any]] = {}
    for name in structure.noiseless:
        number, value, visible = (first[name][part] for part in ("location", "value", "visible"))
        whole = number == np.round(number)
        inside = (number >= 0) & (number < total) & (second[name]["location"] == total - 1 - number)
        if np.any(visible & ~(whole & inside)):
            raise ValueError(
                f"site {name!r} is an observed Delta of something other than entries of a "
                "diffusion site, so no draw could ever agree with it; give it a little noise, for "
                "example numpyro.distributions.Normal(value, 0.01)."
            )
        for entry, each in zip(number[visible].astype(int), value[visible], strict=True):
            other, known = owner.setdefault(int(entry), (name, each))
            if known != each:
                raise ValueError(
                    f"sites {other!r} and {name!r} observe the same entry without noise, as "
                    f"{known:g} and as {each:g}; remove one of them, or give both a little noise."
                )
    numbers = np.zeros(total)
    for entry, (_, each) in owner.items():
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
                f"{float(np.asarray(values)[impossible][0]):g}, which is no state of "
                f"{type(process).__name__}: its states are {process.support}."
            )


def _zeros(bound: BoundProgram) -> Values:
    return {name: jnp.zeros(shape) for name, shape in bound.traces.latents.items()}
