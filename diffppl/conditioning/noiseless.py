"""Observations without noise: entries of a diffusion site that an observed `Delta` shows.

`numpyro.sample("y", dist.Delta(x[rows]), obs=y)` fixes entries of x. Which entries is found by
running the program on numbered entries: the locations of its Deltas are then the numbers of the
entries that they observe. The program may select by indexing, reshaping, or a mask.
"""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .moments import full_shape, peel
from .program import Site, Values

Shapes = dict[str, tuple[int, ...]]


@final
class Noiseless(eqx.Module):
    """The entries that the observed Deltas of a program show, side by side.

    Attributes:
        index: the entry of all diffusion sites, flattened one after the other.
        value: what was observed, in the user's units.
        visible: False for an entry that a mask hides.
    """

    index: Int[Array, " k"]
    value: Array
    visible: Bool[Array, " k"]

    def mask(self, shapes: Shapes) -> dict[str, Bool[Array, "..."]]:
        """The entries of each diffusion site that are known."""
        total = num_entries(shapes)
        flat = jnp.zeros(total, bool).at[self._target(total)].set(True, mode="drop")
        return split_entries(shapes, flat)

    def values(self, shapes: Shapes) -> Values:
        """Their values in the user's units; 0 elsewhere."""
        total = num_entries(shapes)
        flat = jnp.zeros(total, self.value.dtype)
        return split_entries(shapes, flat.at[self._target(total)].set(self.value, mode="drop"))

    def gather(self, values: Values, shapes: Shapes) -> Array:
        """The shown entries of some other values of the diffusion sites."""
        return jnp.concatenate([values[name].ravel() for name in shapes])[self.index]

    def _target(self, total: int) -> Int[Array, " k"]:
        return jnp.where(self.visible, self.index, total)


def shown(site: Site) -> dict[str, Array]:
    """Locations of an observed Delta, the values observed there, and which no mask hides."""
    shape = full_shape(site)
    fn, mask = peel(site["fn"])
    return {
        "location": jnp.broadcast_to(fn.v, shape).ravel(),
        "value": jnp.broadcast_to(site["value"], shape).ravel(),
        "visible": jnp.broadcast_to(mask, shape).ravel(),
    }


def num_entries(shapes: Shapes) -> int:
    """Of all diffusion sites."""
    return sum(math.prod(shape) for shape in shapes.values())


def split_entries(shapes: Shapes, flat: Array) -> dict[str, Array]:
    """One vector over all diffusion sites as the sites, in their own shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(flat, ends[:-1])
    return {
        name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }
