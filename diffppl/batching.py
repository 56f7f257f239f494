"""Vectorised evaluation in blocks, which bounds memory and makes use of the cache."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def map_in_blocks(
    function: Callable[..., PyTree], inputs: tuple[PyTree, ...], batch_size: int
) -> PyTree:
    """Return `jax.vmap(function)(*inputs)`, with at most `batch_size` inputs at a time.

    Blocks have equal length, so that the function compiles once; the last one is padded with
    copies of the first inputs.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    num_blocks = math.ceil(num / batch_size)
    if num_blocks <= 1:
        return jax.vmap(function)(*inputs)
    length = math.ceil(num / num_blocks)  # spreads the padding, which is below num_blocks inputs
    order = jnp.arange(num_blocks * length) % num

    def split(x: Array) -> Array:
        return x[order].reshape(num_blocks, length, *x.shape[1:])

    blocks = jax.tree.map(split, inputs)
    results = jax.lax.map(lambda block: jax.vmap(function)(*block), blocks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], results)
