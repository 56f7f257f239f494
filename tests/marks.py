"""Marks that several files give."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> list:
    """Parameters that wait for `-m slow`: the same law again, at a compilation each."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def quick_and_slow(names: Iterable[str], quick: Iterable[str]) -> list:
    """All names; those that are not among the quick ones wait for `-m slow`."""
    return [*sorted(quick), *slow(*sorted(set(names) - set(quick)))]
