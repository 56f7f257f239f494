"""What is ranked in one simulation, and its rank."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..conditioning.program import Values, is_exact, run_program
from ..conditioning.target import Target

LARGE = 32
"""Coordinates above which a site is looked at along random directions."""


def quantities_at(key_directions: Array, target: Target, values: Values, quantities: Any) -> Values:
    """Everything that is ranked, at one value of the latent sites."""
    trace = run_program(target.program, target.args, target.kwargs, values)
    sites = values | {name: trace[name]["value"] for name in target.sites.deterministic}
    observed = (trace[name] for name in target.sites.observed)
    terms = (
        jnp.sum(site["fn"].log_prob(site["value"]))
        for site in observed
        if not is_exact(site["fn"])  # without noise there is no density
    )
    found = {"log_likelihood": sum(terms, jnp.zeros(()))}
    wanted = {} if quantities is None else quantities(sites)
    if not isinstance(wanted, dict):
        raise TypeError(f"quantities returned {type(wanted).__name__}; it must return a dict.")
    for number, (name, x) in enumerate(sorted(sites.items())):
        x = jnp.asarray(x)
        if x.size > LARGE:
            key = jax.random.fold_in(key_directions, number)
            directions = jax.random.normal(key, (LARGE, x.size)) / math.sqrt(x.size)
            name, x = f"{name}_directions", directions @ jnp.ravel(x).astype(float)
        found[name] = x
    if both := sorted(found.keys() & wanted.keys()):
        raise ValueError(f"quantities returned {both}, which are ranked already; rename them.")
    return found | {name: jnp.asarray(x) for name, x in wanted.items()}


def rank_of_first(key: Array, values: Array) -> Array:
    """Rank of the first row among the others; ties are broken at random."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    return below + jax.random.randint(key, truth.shape, 0, ties + 1)
