"""Faults of observations that can be counted: NaN, infinite and impossible values.

The counts are part of the jaxpr of a program; `validation` evaluates them and raises.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from .moments import visible
from .program import Site


def faults(site: Site) -> dict[str, Array]:
    """How many visible entries of an observation are NaN, infinite, or outside the support."""
    fn, value = site["fn"], jnp.asarray(site["value"])
    if isinstance(fn, dist.Unit):
        return {}
    seen = visible(site)
    value = jnp.broadcast_to(value, seen.shape)
    missing, infinite = seen & jnp.isnan(value), seen & jnp.isinf(value)
    found = {"NaN": jnp.sum(missing), "infinite": jnp.sum(infinite)}
    if fn.support is not None:
        # Entries with a fault of their own, or under a mask, are not counted again.
        judged = seen & ~missing & ~infinite
        inside = jnp.asarray(fn.support(jnp.where(judged, value, 0)))
        axes = tuple(range(inside.ndim, value.ndim))
        found["outside"] = jnp.sum(jnp.all(judged, axis=axes) & ~inside)
    return found
