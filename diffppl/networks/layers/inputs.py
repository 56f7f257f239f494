"""Encoding of events for dense networks, as flat vectors of order one."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def input_size(event_shape: tuple[int, ...], num_categories: int | None = None) -> int:
    """Return the length of the vector that `flatten` returns."""
    return math.prod(event_shape) * (1 if num_categories is None else num_categories)


def flatten(x_t: Array, num_categories: int | None = None) -> Float[Array, " features"]:
    """Encode one event as a flat vector.

    Real numbers are unchanged; bits, which are integers, become -1 and 1; with `num_categories`
    integers become one-hot vectors of that length.
    """
    if num_categories is not None:
        return jax.nn.one_hot(x_t, num_categories).reshape(-1)
    if jnp.issubdtype(x_t.dtype, jnp.inexact):
        return x_t.reshape(-1)
    return 2.0 * x_t.reshape(-1).astype(float) - 1.0
