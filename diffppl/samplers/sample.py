"""The public functions of unconditional sampling."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from ..batching import map_in_blocks
from ..checks.arguments import check_instance, check_key, check_shape, check_size
from ..model import DiffusionModel, respaced
from ..model.inputs import as_context, residual_signal, warn_of_residual_signal
from .ancestral_sampling import Ancestral
from .base import AbstractChainSampler, AbstractSampler


def sample(
    key: Array,
    model: DiffusionModel,
    shape: tuple[int, ...] = (),
    *,
    context: ArrayLike | None = None,
    sampler: AbstractSampler = Ancestral(),
    num_steps: int | None = None,
    batch_size: int = 1_000,
) -> Array:
    """Draw x_0 from a model, in the user's units.

    Every draw has its own key, so the result does not depend on `batch_size`, up to rounding.

    Args:
        key: a typed JAX key.
        model: the model.
        shape: the shape of the batch of draws, a tuple.
        context: shape `(*context_batch, *context_shape)`, if the model takes one; `shape` draws are
            made for each.
        sampler: the sampler; `Ancestral()` is exact and supports every kind of data.
        num_steps: number of levels of the chain to use (`respaced`); None for all.
        batch_size: draws made at once, which bounds the memory. About 1,000 fit a CPU's cache.

    Returns:
        shape `(*shape, *context_batch, *event_shape)`. Warns if the last level keeps too much
        signal of data of the draws' norm.

    Example:
        >>> x = dp.sample(jax.random.key(0), model, (1_000,))
        >>> x = dp.sample(key, model, (1_000,), sampler=dp.samplers.DDIM(), num_steps=20)
    """
    arguments = _check(key, model, shape, context, sampler, num_steps, batch_size)
    draws, signal = _sample(*arguments, keep_path=False)
    if draws.size and not isinstance(signal, Tracer):
        warn_of_residual_signal(signal, "model")
    return draws


def sample_path(
    key: Array,
    model: DiffusionModel,
    shape: tuple[int, ...] = (),
    *,
    context: ArrayLike | None = None,
    sampler: AbstractSampler = Ancestral(),
    num_steps: int | None = None,
    batch_size: int = 1_000,
) -> Array:
    """Return the paths of the draws of `sample`: x_T, .., x_1, x_0 on a new leading axis.

    The axis has one entry more than the sampler has steps, and ends with what `sample` returns. All
    are in the user's units, noise included, so that they can be plotted together. For an absorbing
    chain a state of `num_categories` is the mask.

    Args:
        key, model, shape, context, sampler, num_steps, batch_size: as in `sample`.
    """
    arguments = _check(key, model, shape, context, sampler, num_steps, batch_size)
    return _sample(*arguments, keep_path=True)[0]


def _check(
    key: Array,
    model: DiffusionModel,
    shape: tuple[int, ...],
    context: ArrayLike | None,
    sampler: AbstractSampler,
    num_steps: int | None,
    batch_size: int,
) -> tuple[Array, DiffusionModel, tuple[int, ...], Array | None, AbstractSampler, int]:
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    check_instance("sampler", sampler, AbstractSampler)
    shape = check_shape("shape", shape, least=0)
    batch_size = check_size("batch_size", batch_size)
    context = as_context("context", context, model)
    sampler.check(model)
    if num_steps is not None:
        num_steps = check_size("num_steps", num_steps)
        if not isinstance(sampler, AbstractChainSampler):
            raise ValueError(
                f"num_steps={num_steps} is for samplers that visit the levels of the chain, but "
                f"{type(sampler).__name__} chooses its own steps; leave num_steps out."
            )
    return key, respaced(model, num_steps), shape, context, sampler, batch_size


@eqx.filter_jit
def _sample(
    key: Array,
    model: DiffusionModel,
    shape: tuple[int, ...],
    context: Array | None,
    sampler: AbstractSampler,
    batch_size: int,
    *,
    keep_path: bool,
) -> tuple[Array, Array]:
    """The draws, or their paths, and the signal that the last level keeps of them."""
    process, event_shape = model.process, model.event_shape
    if context is not None and model.context_shape is not None:
        context_batch = context.shape[: context.ndim - len(model.context_shape)]
        context = jnp.broadcast_to(context, (*shape, *context.shape))
        context = context.reshape(-1, *model.context_shape)
        shape = (*shape, *context_batch)

    # One draw, with its own key; `map_in_blocks` maps it over `batch_size` of them at a time.
    def draw(key: Array, context: Array | None) -> Array:
        key_base, key_chain = jax.random.split(key)
        x_T = jnp.asarray(process.base(event_shape).sample(key_base))
        x_0, path = sampler.draw(key_chain, model, x_T, context, keep_path=keep_path)
        return model.to_user(x_0 if path is None else path)

    draws = map_in_blocks(draw, (jax.random.split(key, math.prod(shape)), context), batch_size)
    x_0 = draws[:, -1] if keep_path else draws
    signal = residual_signal(model, model.to_model(x_0))
    if keep_path:
        return jnp.moveaxis(draws, 1, 0).reshape(-1, *shape, *event_shape), signal
    return draws.reshape(*shape, *event_shape), signal
