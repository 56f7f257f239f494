"""What every test may use, and an environment stricter than the user's.

Warnings are errors, and every signature in diffppl is checked against its shapes and types at run
time (both set in pyproject.toml).
"""

import zlib
from collections.abc import Callable, Iterator

import jax
import matplotlib as mpl
import pytest
from jaxtyping import Array

mpl.use("Agg")


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision, for laws that hold to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], Array]:
    """A source of fresh typed keys, the same in every run of the same test."""
    keys = [jax.random.key(zlib.crc32(request.node.nodeid.encode()))]

    def getkey() -> Array:
        keys[0], key = jax.random.split(keys[0])
        return key

    return getkey
