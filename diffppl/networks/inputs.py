"""How events enter a dense network: flat, and of order one."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def input_size(event_shape: tuple[int, ...], num_categories: int | None = None) -> int:
    """Length of what `flatten` returns."""
    return math.prod(event_shape) * (1 if num_categories is None else num_categories)


def flatten(x_t: Array, num_categories: int | None = None) -> Float[Array, " features"]:
    """One event as a flat vector.

    Real numbers are taken as they are; bits, being integers, become -1 and 1; with
    `num_categories` integers become one-hot vectors of that length.
    """
    if num_categories is not None:
        return jax.nn.one_hot(x_t, num_categories).reshape(-1)
    if jnp.issubdtype(x_t.dtype, jnp.inexact):
        return x_t.reshape(-1)
    return 2.0 * x_t.reshape(-1).astype(float) - 1.0


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape, or an error that names it."""
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"{name}={shape!r} must be a tuple of positive integers, such as (28, 28)."
        )
    return shape


def check_size(name: str, size: Any, least: int = 1) -> int:
    """A whole number of at least `least`, or an error that names it."""
    if isinstance(size, bool) or not isinstance(size, int) or size < least:
        raise ValueError(f"{name}={size!r} must be a whole number, {least} or more.")
    return size


def check_callable(name: str, network: Any) -> Any:
    """Something that can be called, or an error that names it."""
    if not callable(network):
        raise TypeError(f"{name}={network!r} must be callable as (x_t, t, context).")
    return network
