"""The rank of the simulated value (the truth) among posterior draws with duplicates.

Resampling duplicates particles, so the draws of a particle method contain copies of one another,
while the truth has no copy. It is then not exchangeable with L draws, and the usual rank would
reject an exact posterior. With m the mean number of copies of a draw, itself included, the draws
are equivalent to L / m distinct ones, and the truth has the weight of one of these:

    rank = floor((L + 1) U),    U = (#{draws < truth} + V (#{draws = truth} + m)) / (L + m),

with V uniform on (0, 1). If every draw has m copies, U = (r + V) / (L / m + 1) with r the rank
among the distinct draws. Without copies (m = 1) this is the usual rank with ties broken at random.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def rank_of_first(key: Array, values: Array, copies: Float[Array, ""]) -> Array:
    """Return the rank of the first row among the others, which have `copies` copies on average."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    num = len(draws)
    position = below + jax.random.uniform(key, truth.shape) * (ties + copies)
    rank = jnp.floor(position / (num + copies) * (num + 1)).astype(int)
    return jnp.minimum(rank, num)  # rounding can yield U = 1


def mean_copies(draws: PyTree[Array], particle: Array | None) -> Float[Array, ""]:
    """Return the mean number of copies of a draw, itself included.

    Args:
        draws: arrays with a leading axis of draws. Draws that are equal in every entry are copies,
            provided that some entry is real: discrete draws can be equal by chance.
        particle: the particle index of each draw; identifies copies if not None.
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
