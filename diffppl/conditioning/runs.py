"""The compiled parts of a `Posterior`, and the loop over chains and chunks that drives them.

Each compiled function takes the target as an argument and traces once for new keys, data and
settings. The loop is in Python, as that of `fit` is: a progress bar, an interrupt and the choice of
the next chunk's length need nothing from inside compiled code.
"""

import time
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from tqdm.auto import tqdm

from ..model.inputs import left_at_the_end
from .diagnostics import Fault, root_mean_square
from .method import AbstractMethod, ChainKeys, Draws, chain_keys, iterate
from .program import Values
from .target import Target

_SECONDS = 0.5  # between two updates of the bar, and checks for interrupts


class Report(NamedTuple):
    """Of one chain: draws by site in the user's units, and figures to warn of.

    `left` is what the last level of each site's chain keeps of its draws, `lost` the share of its
    numbers that are not finite, `size` their root mean square in model units, `nan` the share of
    draws at which a site's log-density is NaN, `calls` the evaluations of the network.
    """

    samples: Values
    left: dict[str, Array]
    lost: dict[str, Array]
    size: dict[str, Array]
    nan: dict[str, Array]
    calls: Array


class Run(NamedTuple):
    """What is kept of a run; `places` holds the (chain, draw) that fills each place."""

    key: Array
    arguments: tuple[Any, Any]
    target: Target
    method: AbstractMethod
    explanation: str
    draws: Draws
    report: Report
    faults: list[Fault]
    places: np.ndarray


def run_chains(
    key: Array,
    target: Target,
    method: AbstractMethod,
    num_chains: int,
    num_samples: int,
    *,
    show: bool,
) -> tuple[Draws, Report]:
    """All chains, one after the other, stacked on a leading axis.

    An interrupt (Ctrl-C) ends the run. The chains that were finished are returned, with a warning;
    without any, the interrupt is raised.
    """
    phases = method.phases(target)
    found: list[tuple[Draws, Report]] = []
    chunk = 1
    total = num_chains * (sum(phases) + len(phases))
    bar = tqdm(total=total, desc=type(method).__name__, disable=not show, dynamic_ncols=True)
    try:
        for chain in range(num_chains):
            keys = _chain_keys(key, num_chains, jax.device_put(np.int32(chain)), phases)
            state = _init(keys.init, target, method, num_samples)
            for phase, length in enumerate(phases):
                done = 0
                while done < length:
                    stop = min(done + chunk, length)
                    begun = time.perf_counter()
                    state = _advance(
                        keys.steps[phase],
                        target,
                        method,
                        state,
                        phase,
                        jax.device_put(np.int32(done)),
                        jax.device_put(np.int32(stop)),
                    )
                    jax.block_until_ready(state)
                    chunk = _next_chunk(stop - done, time.perf_counter() - begun)
                    bar.update(stop - done)
                    done = stop
                state = _end(keys.ends[phase], target, method, state, phase, num_samples)
                bar.update(1)
            report = _report(keys.report, target, method, state, num_samples)
            found.append(jax.block_until_ready((state, report)))
    except KeyboardInterrupt:
        if not found:
            raise
        warnings.warn(
            f"the run was interrupted after {len(found)} of {num_chains} chains, which are kept; "
            "the one that was running is lost.",
            stacklevel=3,
        )
    finally:
        bar.close()
    return _stacked(found)


def _next_chunk(length: int, seconds: float) -> int:
    """So many iterations that a chunk takes about half a second; twice as many at most."""
    return max(1, min(2 * length, round(length * _SECONDS / max(seconds, 1e-9))))


@eqx.filter_jit
def _chain_keys(
    key: Array, num_chains: int, chain: Int[Array, ""], phases: tuple[int, ...]
) -> ChainKeys:
    # In one piece: every operation by itself would take as long to compile.
    return chain_keys(jax.random.split(key, num_chains)[chain], phases)


def _stacked(found: list[Any]) -> Any:
    """By NumPy: for 2,000 chains XLA compiles the concatenation for a minute."""
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *found)


@eqx.filter_jit
def _init(key: Array, target: Target, method: AbstractMethod, num_samples: int) -> Any:
    return _strongly_typed(method.init(key, target, num_samples))


@eqx.filter_jit
def _advance(
    key: Array,
    target: Target,
    method: AbstractMethod,
    state: Any,
    phase: int,
    start: Array,
    stop: Array,
) -> Any:
    return iterate(key, target, method, state, phase, start, stop)


@eqx.filter_jit
def _end(
    key: Array, target: Target, method: AbstractMethod, state: Any, phase: int, num_samples: int
) -> Any:
    return _strongly_typed(method.end(key, target, state, phase, num_samples))


def _strongly_typed(state: Any) -> Any:
    """As a loop leaves it: `_advance` would otherwise be compiled for the first state alone."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)


@eqx.filter_jit
def _report(
    key: Array, target: Target, method: AbstractMethod, draws: Draws, num_samples: int
) -> Report:
    def values(key: Array, x_0: Values, latents: Array) -> tuple[Values, dict[str, Array]]:
        evaluation = target.draw(key, x_0, latents)
        nan = {name: jnp.any(jnp.isnan(d)) for name, d in evaluation.log_densities.items()}
        return evaluation.values, nan

    keys = jax.random.split(key, num_samples)
    samples, nan = jax.vmap(values)(keys, draws.x_0, draws.latents)
    return Report(
        samples,
        target.map_sites(left_at_the_end, draws.x_0),
        {name: jnp.mean(~jnp.isfinite(x)) for name, x in draws.x_0.items()},
        {name: root_mean_square(x) for name, x in draws.x_0.items()},
        jax.tree.map(jnp.mean, nan),
        jnp.asarray(method.num_denoiser_calls(target, num_samples), float),
    )


# After a run --------------------------------------------------------------------------------------


@eqx.filter_jit
def predict(key: Array, target: Target, x_0: Values, latents: Array) -> Values:
    """One new draw of every observed site for each posterior draw, `(chains, draws, ...)`."""
    keys = jax.random.split(key, latents.shape[:2])

    def draw(key: Array, x_0: Values, latents: Array) -> Values:
        return target.bound.draw_observed(key, x_0, target.unravel(latents))

    return jax.vmap(jax.vmap(draw))(keys, x_0, latents)


@eqx.filter_jit
def log_likelihoods(target: Target, x_0: Values, latents: Array) -> Values:
    """Log-density of every observation at each posterior draw, for sites that have one."""
    structure, factors = target.structure, target.bound.traces.factors
    names = [n for n in structure.observed if n not in (*structure.noiseless, *factors)]

    def single(x_0: Values, latents: Array) -> Values:
        densities = target.evaluate(x_0, latents).log_densities
        return {name: densities[name] for name in names}

    return jax.vmap(jax.vmap(single))(x_0, latents)
