"""The rank of the truth among draws.

Draws of a particle method are often copies of one another, and the truth, which is no copy, does
not stand among L of them as among L different ones: a right posterior would be rejected. With m the
mean number of copies of a draw, itself counted, the draws are worth L / m different ones, and the
truth is given the width of one of these,

    rank = floor((L + 1) U),    U = (#{draws < truth} + V (#{draws = truth} + m)) / (L + m),

with V uniform on (0, 1). For draws that all have m copies U is (r + V) / (L / m + 1) with r
the rank among the different ones; without copies the rank is the usual one, ties broken at random.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def rank_of_first(key: Array, values: Array, copies: Float[Array, ""]) -> Array:
    """Rank of the first row among the others, of which each counts for `copies` draws in one."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    num = len(draws)
    place = below + jax.random.uniform(key, truth.shape) * (ties + copies)
    rank = jnp.floor(place / (num + copies) * (num + 1)).astype(int)
    return jnp.minimum(rank, num)


def mean_copies(draws: PyTree[Array], particle: Array | None) -> Float[Array, ""]:
    """The mean number of draws that are copies of a draw, itself counted.

    Args:
        draws: arrays with a leading axis of draws. Those that are equal in all numbers are copies,
            if any of the numbers is real: bits may well be equal by chance.
        particle: the index of the particle of each draw, by which copies are identified if given.
    """
    leaves = [leaf for leaf in jax.tree.leaves(draws) if leaf.size]
    if particle is not None:
        leaves = [particle]
    elif not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return jnp.ones(())
    rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]

    def num_equal(index: Array) -> Array:
        same = [jnp.all(row == row[index], axis=1) for row in rows]
        return jnp.sum(jnp.all(jnp.stack(same), axis=0))

    return jnp.mean(jax.lax.map(num_equal, jnp.arange(len(rows[0]))).astype(float))
