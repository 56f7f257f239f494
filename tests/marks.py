"""Marks that several files give."""

from typing import Any

import pytest


def slow(*values: Any) -> list:
    """Parameters that wait for `-m slow`: the same law again, at a compilation each."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
