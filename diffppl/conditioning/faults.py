"""Counts of faulty observations: NaN, infinite values, and values outside the support.

The counts are part of the jaxpr of a program; `validation` evaluates them and raises.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from .moments import visible
from .program import Site


def faults(site: Site) -> dict[str, Array]:
    """Count visible entries of an observation that are NaN, infinite, or outside the support."""
    fn, value = site["fn"], jnp.asarray(site["value"])
    if isinstance(fn, dist.Unit):
        return {}
    mask = visible(site)
    value = jnp.broadcast_to(value, mask.shape)
    nan, infinite = mask & jnp.isnan(value), mask & jnp.isinf(value)
    counts = {"NaN": jnp.sum(nan), "infinite": jnp.sum(infinite)}
    if fn.support is not None:
        # An entry is counted once: NaN, infinite and masked ones are excluded here.
        finite = mask & ~nan & ~infinite
        inside = jnp.asarray(fn.support(jnp.where(finite, value, 0)))
        axes = tuple(range(inside.ndim, value.ndim))  # event axes, which the support reduces
        counts["outside"] = jnp.sum(jnp.all(finite, axis=axes) & ~inside)
    return counts
