"""Numbers of categories, one for all coordinates or one per coordinate."""

import numpy as np
from jaxtyping import Bool, Int

from ..checks.arguments import check_size
from ..checks.arrays import Numbers, as_numbers, describe_invalid

Counts = int | Int[np.ndarray, "..."]


def is_state(num_categories: Counts) -> Bool[np.ndarray, "*counts categories"]:
    """Return which of the states 0..K-1 each coordinate has; K is the largest number of states."""
    return np.arange(np.max(num_categories)) < np.expand_dims(num_categories, -1)


def check_counts(num_categories: Numbers) -> int | tuple:
    """Return an int, or nested tuples of ints in the shape of the coordinates (hashable).

    Raises:
        TypeError: not numbers.
        ValueError: empty, or numbers that are not whole or below 2.
    """
    counts = np.asarray(as_numbers("num_categories", num_categories))
    if counts.ndim == 0:
        return check_size("num_categories", num_categories, least=2)
    bad = np.asarray((counts < 2) | (counts % 1 != 0))  # NaN % 1 is NaN, which differs from 0
    if counts.size == 0:
        raise ValueError("num_categories is empty; it needs one number for each coordinate.")
    if bad.any():
        raise ValueError(
            "num_categories must be whole numbers, 2 or more, one for each coordinate: "
            f"{describe_invalid(bad, counts)} are not."
        )
    return tuple(map(_as_tuples, counts.astype(int).tolist()))


def _as_tuples(nested: int | list) -> int | tuple:
    """Convert nested lists to nested tuples, which a static field of a module requires."""
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested
