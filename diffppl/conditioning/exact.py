"""Observations without noise: entries of a diffusion site that a `Delta` shows as they are.

`numpyro.sample("y", dist.Delta(x[rows]), obs=y)` fixes entries of x. Which ones is found by running
the program on a site whose entries are numbered: what the Delta then shows are the numbers of the
entries that it observes. The program may choose them by indexing, reshaping, or a mask.
"""

import math
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Int

from .program import Program, Sites, Values, run_program


@final
class Exact(eqx.Module):
    """The entries that the Deltas of a program show, side by side.

    Attributes:
        index: which entry of all diffusion sites, flattened one after the other.
        value: what was observed, in the user's units.
        visible: False for an entry that a mask hides.
    """

    index: Int[Array, " k"]
    value: Array
    visible: Bool[Array, " k"]

    def mask(self, sites: Sites) -> dict[str, Bool[Array, "..."]]:
        """Which entries of each diffusion site are known."""
        total = sum(_sizes(sites).values())
        return _split(sites, jnp.zeros(total, bool).at[self._target(total)].set(True, mode="drop"))

    def values(self, sites: Sites) -> Values:
        """What they are, in the user's units; 0 elsewhere."""
        total = sum(_sizes(sites).values())
        flat = jnp.zeros(total, self.value.dtype)
        found = _split(sites, flat.at[self._target(total)].set(self.value, mode="drop"))
        return {
            name: value.astype(sites.diffusion[name].model.process.dtype)
            for name, value in found.items()
        }

    def gather(self, values: Values, sites: Sites) -> Array:
        """The shown entries of some other values of the diffusion sites."""
        return jnp.concatenate([values[name].ravel() for name in sites.diffusion])[self.index]

    def _target(self, total: int) -> Int[Array, " k"]:
        return jnp.where(self.visible, self.index, total)


def exact_entries(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites
) -> Exact | None:
    """What the Deltas of a program fix; None without any."""
    if not sites.exact:
        return None
    total = sum(_sizes(sites).values())
    shown, value, visible = _shown(program, args, kwargs, sites, jnp.arange(total))
    return Exact(jnp.where(visible, shown, 0), value, visible)


def not_a_selection(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites
) -> Bool[Array, ""]:
    """Whether some Delta shows anything but entries of diffusion sites: number them twice."""
    total = sum(_sizes(sites).values())
    first, _, visible = _shown(program, args, kwargs, sites, jnp.arange(total))
    second, _, _ = _shown(program, args, kwargs, sites, total - 1 - jnp.arange(total))
    selected = (first >= 0) & (first < total) & (second == total - 1 - first)
    return jnp.any(visible & ~selected)


def _sizes(sites: Sites) -> dict[str, int]:
    return {name: math.prod(site.shape) for name, site in sites.diffusion.items()}


def _split(sites: Sites, flat: Array) -> dict[str, Array]:
    """One vector as the diffusion sites, in their own shapes."""
    parts, start = {}, 0
    for name, size in _sizes(sites).items():
        parts[name] = flat[start : start + size].reshape(sites.diffusion[name].shape)
        start += size
    return parts


def _shown(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites, numbers: Array
) -> tuple[Array, Array, Array]:
    """What the Deltas show of numbered entries, what was observed, and what no mask hides."""
    numbered = {
        name: x.astype(sites.diffusion[name].model.process.dtype)
        for name, x in _split(sites, numbers).items()
    }
    trace = run_program(program, args, kwargs, numbered)
    shown, values, visible = [], [], []
    for name in sites.exact:
        fn, mask = trace[name]["fn"], True
        if isinstance(fn, dist.MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask
        mask = jnp.broadcast_to(jnp.asarray(mask), fn.batch_shape)
        mask = jnp.expand_dims(mask, tuple(range(mask.ndim, len(fn.shape()))))
        entry = jnp.broadcast_to(fn.mean, fn.shape())
        # Numbers are whole: anything else is not an entry, and must not round to one.
        shown.append(jnp.where(entry == jnp.round(entry), entry, -1.0).astype(int).ravel())
        values.append(jnp.broadcast_to(trace[name]["value"], fn.shape()).ravel())
        visible.append(jnp.broadcast_to(mask, fn.shape()).ravel())
    return jnp.concatenate(shown), jnp.concatenate(values), jnp.concatenate(visible)
