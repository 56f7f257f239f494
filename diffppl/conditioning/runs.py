"""Compiled functions of a `Posterior`, and the loop over chains and chunks of iterations.

The compiled functions take the target as an argument, so that new keys, data and settings do not
cause a new compilation. The loop is in Python, as in `fit`, so that the progress bar, interrupts
and the choice of the chunk length require no callbacks from compiled code.
"""

import time
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm.auto import tqdm

from ..model.inputs import residual_signal
from .compilation import jit_quickly
from .diagnostics import Fault, root_mean_square, tail_indices
from .keys import ChainKeys, chain_keys
from .method import AbstractMethod, Draws, iterate
from .program import Values
from .target import Target

_CHUNK_SECONDS = 0.5  # between updates of the progress bar and checks for interrupts


class Report(NamedTuple):
    """Draws of one chain by site, in the user's units, and diagnostics of the draws.

    `signal` is the part of the draws of each site that remains in x_T, `nonfinite` the fraction of
    their entries that are not finite, `rms` their root mean square in model units, `nan` the
    fraction of draws at which the log-density of a site is NaN, `calls` the number of network
    evaluations.
    """

    samples: Values
    signal: dict[str, Array]
    nonfinite: dict[str, Array]
    rms: dict[str, Array]
    nan: dict[str, Array]
    calls: Array


class Run(NamedTuple):
    """Record of a run; `pooled` is the (chain, draw) index of each draw after pooling."""

    key: Array
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    target: Target
    method: AbstractMethod
    explanation: str
    draws: Draws
    report: Report
    faults: list[Fault]
    pooled: np.ndarray

    @property
    def fault_names(self) -> tuple[str, ...]:
        """The problems, a short phrase for each."""
        return tuple(fault.summary for fault in self.faults)

    @property
    def num_denoiser_calls(self) -> int:
        """Number of network evaluations in all chains."""
        return round(float(jnp.sum(self.report.calls)))

    @property
    def pareto_k(self) -> np.ndarray:
        """Pareto k-hat of the final weights of each chain."""
        return tail_indices(self.draws, self.target)


def run_chains(
    key: Array,
    target: Target,
    method: AbstractMethod,
    num_chains: int,
    num_samples: int,
    *,
    show: bool,
) -> tuple[Draws, Report]:
    """Run the chains sequentially and stack them on a leading axis.

    An interrupt (Ctrl-C) ends the run. Finished chains are returned, with a warning; if there are
    none, the interrupt is raised.
    """
    phases = method.phases(target)
    finished: list[tuple[Draws, Report]] = []
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
                    started = time.perf_counter()
                    # Python integers would be static under `filter_jit` and cause compilations.
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
                    chunk = _next_chunk(stop - done, time.perf_counter() - started)
                    bar.update(stop - done)
                    done = stop
                state = _end(keys.ends[phase], target, method, state, phase, num_samples)
                bar.update(1)
            report = _report(keys.report, target, method, state, num_samples)
            finished.append(jax.block_until_ready((state, report)))
    except KeyboardInterrupt:
        if not finished:
            raise
        warnings.warn(
            f"the run was interrupted after {len(finished)} of {num_chains} chains, which are "
            "kept; the unfinished chain is discarded.",
            stacklevel=3,
        )
    finally:
        bar.close()
    return _stack(finished)


def _next_chunk(length: int, seconds: float) -> int:
    """Return the chunk length for a duration of `_CHUNK_SECONDS`, at most twice the last one."""
    return max(1, min(2 * length, round(length * _CHUNK_SECONDS / max(seconds, 1e-9))))


@jit_quickly(optimization_level=0)
def _chain_keys(
    key: Array, num_chains: int, chain: Int[Array, ""], phases: tuple[int, ...]
) -> ChainKeys:
    # A single compilation: compiling each operation separately takes as long for each.
    return chain_keys(key, phases, num_chains, chain)


def _stack(chains: list[PyTree]) -> PyTree:
    """Stack chains by NumPy: for 2,000 chains XLA takes a minute to compile the concatenation."""
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *chains)


@jit_quickly(optimization_level=0)
def _init(key: Array, target: Target, method: AbstractMethod, num_samples: int) -> PyTree:
    return _strongly_typed(method.init(key, target, num_samples))


@eqx.filter_jit
def _advance(
    key: Array,
    target: Target,
    method: AbstractMethod,
    state: PyTree,
    phase: int,
    start: Array,
    stop: Array,
) -> PyTree:
    return iterate(key, target, method, state, phase, start, stop)


@jit_quickly(optimization_level=1)
def _end(
    key: Array, target: Target, method: AbstractMethod, state: PyTree, phase: int, num_samples: int
) -> PyTree:
    return _strongly_typed(method.end(key, target, state, phase, num_samples))


def _strongly_typed(state: PyTree) -> PyTree:
    """Remove weak types, as a loop does; `_advance` would otherwise compile twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)


@jit_quickly(optimization_level=0)
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
        target.map_sites(residual_signal, draws.x_0),
        {name: jnp.mean(~jnp.isfinite(x)) for name, x in draws.x_0.items()},
        {name: root_mean_square(x) for name, x in draws.x_0.items()},
        jax.tree.map(jnp.mean, nan),
        jnp.asarray(method.num_denoiser_calls(target, num_samples), float),
    )


# Functions of the draws ---------------------------------------------------------------------------


@jit_quickly(optimization_level=0)
def predict(key: Array, target: Target, x_0: Values, latents: Array) -> Values:
    """Draw every observed site once for each posterior draw, shape `(chains, draws, ...)`."""
    keys = jax.random.split(key, latents.shape[:2])

    def draw(key: Array, x_0: Values, latents: Array) -> Values:
        return target.bound.draw_observed(key, x_0, target.unravel(latents))

    return jax.vmap(jax.vmap(draw))(keys, x_0, latents)


@jit_quickly(optimization_level=0)
def log_likelihoods(target: Target, x_0: Values, latents: Array) -> Values:
    """Return log-densities of observations at each posterior draw, except Deltas and factors."""
    structure, factors = target.structure, target.bound.traces.factors
    names = [n for n in structure.observed if n not in (*structure.noiseless, *factors)]

    def single(x_0: Values, latents: Array) -> Values:
        densities = target.evaluate(x_0, latents).log_densities
        return {name: densities[name] for name in names}

    return jax.vmap(jax.vmap(single))(x_0, latents)
