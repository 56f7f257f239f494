"""Progress bars for compiled loops.

A compiled loop cannot hold a bar, or it would be compiled again for the next one. It calls `tick`,
and `tick` moves whichever bar is open.
"""

import contextlib
from collections.abc import Iterator

import jax
from tqdm.auto import tqdm

_open: list[tqdm] = []


def _update() -> None:
    if _open:
        _open[-1].update()


def tick() -> None:
    """Move the open bar by one, from inside compiled code, without waiting for it."""
    jax.debug.callback(_update)


@contextlib.contextmanager
def bar(total: int, description: str, *, show: bool) -> Iterator[None]:
    """A bar that `tick` moves until the block ends."""
    if not show:
        yield
        return
    with tqdm(total=total, desc=description, dynamic_ncols=True) as opened:
        _open.append(opened)
        try:
            yield
            jax.effects_barrier()
        finally:
            _open.remove(opened)
