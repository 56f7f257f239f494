"""What every test may use, and an environment stricter than the user's.

Warnings are errors, and every signature in diffppl is checked against its shapes and types at run
time (both set in pyproject.toml).
"""

import itertools
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator

from .fast_compilation import FLAGS

# Few tests run so long that they would be quicker with XLA_FLAGS="" in the environment.
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax
import jaxtyping
import matplotlib as mpl
import pytest
from jaxtyping import Array

mpl.use("Agg")


CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    """Tests are mostly compilation, often of the same programs: the processes share what they have.

    In a folder of this run, unless the variable names one that outlives it.
    """
    if CACHE not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="diffppl-tests-")
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop(CACHE))
        os.environ[CACHE] = folder.name  # the workers' environment is this one
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_NUM_TESTS = itertools.count(1)
_MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Thousands of compiled programs in one process reach Linux's limit of 65,530 memory maps."""
    yield
    if next(_NUM_TESTS) % 10 == 0 and _MAPS.exists():
        with _MAPS.open("rb") as maps:
            num_maps = sum(1 for _ in maps)
        if num_maps > 25_000:
            jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision, for laws that hold to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users_call_it() -> Iterator[None]:
    """Without the checks of annotations, which users do not have and which come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], Array]:
    """A source of fresh typed keys, the same in every run of the same test."""
    keys = [jax.random.key(zlib.crc32(request.node.nodeid.encode()))]

    def getkey() -> Array:
        keys[0], key = jax.random.split(keys[0])
        return key

    return getkey
