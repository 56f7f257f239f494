"""Ancestral draws from the reverse chain, and the loop over its steps that samplers share.

    x_T ~ pi,   x_{t-1} ~ p(x_{t-1} | x_t) for t = T..2,   x_0 ~ p(x_0 | x_1)

The draws are exact draws from the model (Sohl-Dickstein et al. 2015, section 2.2), for every kind
of data, at a cost of T network calls.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..processes.base import Time
from .base import AbstractModel


class SamplerState(NamedTuple):
    """State of a chain: x_t, and what the sampler stores of the previous step, at first zeros."""

    x: Array
    memory: Array


def run_chain(
    key: Array,
    model: AbstractModel,
    x_T: Array,
    step: Callable[[Array, SamplerState, Int[Array, ""]], SamplerState],
    final_step: Callable[[Array, Array], Array],
    *,
    keep_path: bool = False,
) -> tuple[Array, Array | None]:
    """Run a chain from x_T to x_0, in model units.

    Args:
        key: a typed JAX key, or a raw one.
        model: the model, whose steps are run.
        x_T: draws from the base.
        step: `(key, state, t) -> state`, from x_t to x_{t-1} for a traced t in 2..T.
        final_step: `(key, x_1) -> x_0`.
        keep_path: whether to return the path.

    Returns:
        x_0, and x_T, .., x_1, x_0 on a new leading axis, or None without `keep_path`.
    """
    dtype = model.process.dtype
    key_steps, key_final = jax.random.split(key)
    x_T = x_T.astype(dtype)

    def body(state: SamplerState, inputs: tuple[Array, Array]) -> tuple[SamplerState, PyTree]:
        key, t = inputs
        # A step may promote the dtype, which `scan` does not allow.
        state = jax.tree.map(lambda x: x.astype(dtype), step(key, state, t))
        return state, state.x if keep_path else None

    times = jnp.arange(model.num_steps, 1, -1)
    start = SamplerState(x_T, jnp.zeros_like(x_T))
    end, xs = jax.lax.scan(body, start, (jax.random.split(key_steps, len(times)), times))
    x_0 = final_step(key_final, end.x).astype(dtype)
    return x_0, jnp.concatenate([x_T[None], xs, x_0[None]]) if keep_path else None


def ancestral_step(
    key: Array, model: AbstractModel, x_t: Array, t: Time, context: Array | None
) -> Array:
    """Draw x_{t-1} from the reverse kernel."""
    return jnp.asarray(model.reverse_kernel(x_t, t, context).sample(key))


def ancestral(
    key: Array, model: AbstractModel, shape: tuple[int, ...], context: Array | None = None
) -> Array:
    """Draw x_0 in model units, shape `(*shape, *event_shape)`; pure, for use inside programs.

    Args:
        key: a typed JAX key, or a raw one as made by NumPyro's handlers.
        model: the model.
        shape: the batch shape of the draws.
        context: shape `(*context_batch, *context_shape)`, broadcast against `shape`.
    """
    key_base, key_chain = jax.random.split(key)
    x_T = jnp.asarray(model.process.base((*shape, *model.event_shape)).sample(key_base))

    def step(key: Array, state: SamplerState, t: Time) -> SamplerState:
        return state._replace(x=ancestral_step(key, model, state.x, t, context))

    def final_step(key: Array, x_1: Array) -> Array:
        return ancestral_step(key, model, x_1, 1, context)

    return run_chain(key_chain, model, x_T, step, final_step)[0]
