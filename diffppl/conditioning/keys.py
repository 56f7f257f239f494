"""Random keys of a run. Each call of `jax.random.split` compiles a loop, so calls are combined."""

from typing import final

import equinox as eqx
import jax
from jaxtyping import Array, Int


def split(key: Array, num: int) -> tuple[Array, ...]:
    """Split a key; a single one is the key itself."""
    return (key,) if num == 1 else tuple(jax.random.split(key, num))


@final
class ChainKeys(eqx.Module):
    """Keys of one chain: for its start, the steps and ends of its phases, and the report."""

    init: Array
    steps: tuple[Array, ...]
    ends: tuple[Array, ...]
    report: Array


def chain_keys(
    key: Array, phases: tuple[int, ...], num_chains: int = 1, chain: int | Int[Array, ""] = 0
) -> ChainKeys:
    """Return the keys of one of several chains."""
    num = len(phases)
    key_init, key_report, *keys = jax.random.split(key, (num_chains, 2 + 2 * num))[chain]
    return ChainKeys(key_init, tuple(keys[:num]), tuple(keys[num:]), key_report)
