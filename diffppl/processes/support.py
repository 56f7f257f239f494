"""Checks of a process, and of data, against the support."""

import numpy as np

from ..checks.arguments import check_broadcast
from ..checks.arrays import describe_invalid
from .base import AbstractProcess


def check_real(
    what: str, process: AbstractProcess, remedy: str = "", *, subject: str = "the process is"
) -> None:
    """Raise a ValueError for a process of discrete data.

    Args:
        what: what requires real data, as the user typed it.
        process: the process.
        remedy: end of the message, such as "; use Data()".
        subject: whose process it is, such as "site 'x' has".
    """
    if process.support.is_discrete:
        name = type(process).__name__
        raise ValueError(f"{what} is for real data, but {subject} {name}{remedy}.")


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
