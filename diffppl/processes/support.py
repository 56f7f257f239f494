"""Check of data against the support of a process."""

import numpy as np

from ..checks.arguments import check_broadcast
from ..checks.arrays import describe_invalid
from .base import AbstractProcess


def check_support(name: str, values: np.ndarray, process: AbstractProcess) -> None:
    """Raise a ValueError for data, of any number of events, outside the support of a process."""
    # Of all processes only a categorical one has `counts`, which may differ between coordinates.
    check_broadcast("num_categories", np.shape(getattr(process, "counts", 0)), values.shape)
    outside = ~np.asarray(process.support(values), bool)
    if outside.any():
        raise ValueError(
            f"{name} has values outside the support of {type(process).__name__}, "
            f"{str(process.support)[:100]}: {describe_invalid(outside, values)}."
        )
