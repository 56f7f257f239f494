"""Noiseless observations: entries of a diffusion site that are observed through a `Delta`.

`numpyro.sample("y", dist.Delta(x[rows]), obs=y)` fixes entries of x. To find these entries, the
program is evaluated at an x whose entries are numbered: the locations of its Deltas are then the
numbers of the observed entries. The program may select by indexing, reshaping, or a mask.
"""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from numpyro.distributions import Delta

from .moments import full_shape, unwrap_masked
from .program import Site, Values

Shapes = dict[str, tuple[int, ...]]


@final
class Noiseless(eqx.Module):
    """The entries that the Deltas of a program observe, concatenated.

    Attributes:
        index: index of each entry into all diffusion sites, flattened and concatenated.
        value: observed value of each entry, in the user's units.
        visible: False for masked entries.
    """

    index: Int[Array, " k"]
    value: Array
    visible: Bool[Array, " k"]

    def mask(self, shapes: Shapes) -> dict[str, Bool[Array, "..."]]:
        """Return which entries of each diffusion site are observed."""
        total = num_entries(shapes)
        flat = jnp.zeros(total, bool).at[self._index_or_drop(total)].set(True, mode="drop")
        return split_entries(shapes, flat)

    def values(self, shapes: Shapes) -> Values:
        """Return the observed values in the user's units; 0 elsewhere."""
        total = num_entries(shapes)
        flat = jnp.zeros(total, self.value.dtype)
        flat = flat.at[self._index_or_drop(total)].set(self.value, mode="drop")
        return split_entries(shapes, flat)

    def gather(self, values: Values, shapes: Shapes) -> Array:
        """Return the observed entries of other values of the diffusion sites."""
        return jnp.concatenate([values[name].ravel() for name in shapes])[self.index]

    def _index_or_drop(self, total: int) -> Int[Array, " k"]:
        # Masked entries get an index out of range, which the mode "drop" ignores.
        return jnp.where(self.visible, self.index, total)


def shown(site: Site) -> dict[str, Array]:
    """Return the locations and values of an observed Delta, and which of them are not masked."""
    shape = full_shape(site)
    fn, mask = unwrap_masked(site["fn"])
    assert isinstance(fn, Delta)
    return {
        "location": jnp.broadcast_to(fn.v, shape).ravel(),
        "value": jnp.broadcast_to(site["value"], shape).ravel(),
        "visible": jnp.broadcast_to(mask, shape).ravel(),
    }


def num_entries(shapes: Shapes) -> int:
    """Return the number of entries of all diffusion sites."""
    return sum(math.prod(shape) for shape in shapes.values())


def split_entries(shapes: Shapes, flat: Array) -> dict[str, Array]:
    """Split a vector over all diffusion sites into the sites, in their shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(flat, ends[:-1])
    return {
        name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }
