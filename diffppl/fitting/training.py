"""Training loop of `fit`: many iterations in one compiled call.

Iteration i draws its minibatch, and the steps and the noise of the loss, from `fold_in(key, i)`. A
run therefore does not depend on its division into chunks, and a resumed run equals an uninterrupted
one.

Weights are averaged as a_i = d_i a_{i-1} + (1 - d_i) w_i with d_i = min(decay, (1+i)/(10+i)), so
that the contribution of the initial weights also decays in a short run.
"""

from types import UnionType
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..batching import map_in_blocks
from ..checks.arguments import as_float, described
from ..data import AbstractSource, InMemory
from ..denoisers import AbstractDenoiser
from ..likelihood.elbo import AbstractSteps, bound
from ..model import DiffusionModel
from ..model.scaling import Scaling
from ..predictions.variance import FittedVariance, find_fitted, replace_fitted
from ..schedules import AbstractSchedule, Learned
from .losses import AbstractLoss
from .reverse_variance import updated

# Trainable parameters ---------------------------------------------------------------------------


def default_trainable(model: DiffusionModel) -> PyTree[bool]:
    """Select the network's inexact arrays and the levels of a learned schedule."""
    # The arrays of an analytic denoiser, and of a schedule in a network, are not weights.
    return _weights(model, AbstractDenoiser | AbstractSchedule)


def _weights(model: DiffusionModel, fixed: type | UnionType) -> PyTree[bool]:
    """Select the trainable arrays of a model; parts of its network of type `fixed` have none."""

    def is_fixed(node: object) -> bool:
        return isinstance(node, fixed)

    nothing = jax.tree.map(lambda _: False, model)
    # A node of type `fixed` is a leaf here, and becomes False as a whole.
    network = jax.tree.map(eqx.is_inexact_array, model.network, is_leaf=is_fixed)
    spec = eqx.tree_at(lambda model: model.network, nothing, network)
    if isinstance(model.process.schedule, Learned):
        spec = eqx.tree_at(lambda model: model.process.schedule.raw_drops, spec, replace=True)
    return spec


def trained_leaves(model: DiffusionModel, trainable: PyTree) -> PyTree[bool]:
    """Select the inexact arrays that are named by `trainable` and can be trained.

    A fixed schedule, a rate and a scaling cannot be trained.

    Raises:
        TypeError: `trainable` has leaves other than booleans and functions.
        ValueError: `trainable` and the model differ in structure.
    """
    if not all(isinstance(leaf, bool) or callable(leaf) for leaf in jax.tree.leaves(trainable)):
        raise TypeError(
            f"trainable={described(trainable)} must be a pytree of booleans or functions, as "
            "equinox.partition(model, trainable) takes it."
        )
    try:
        params = eqx.filter(eqx.filter(model, trainable), _weights(model, AbstractSchedule))
    except ValueError as error:
        raise ValueError(f"trainable does not have the structure of model: {error}") from error
    return jax.tree.map(lambda leaf: leaf is not None, params, is_leaf=lambda leaf: leaf is None)


# The loop -----------------------------------------------------------------------------------------


@final
class FitState(eqx.Module):
    """State of a training run.

    Attributes:
        params: the trainable part of a model.
        average: moving average of `params`, or None.
        opt_state: state of the optimiser.
        variance: estimate of the reverse variance, if the model has a fitted one.
        iteration: number of completed iterations.
    """

    params: PyTree
    average: PyTree
    opt_state: PyTree
    variance: FittedVariance | None
    iteration: Int[Array, ""]

    def __repr__(self) -> str:
        return f"FitState(iteration={int(self.iteration)})"


@final
class TrainingConfig(eqx.Module):
    """Constants of a training run, apart from the data."""

    frozen: PyTree
    loss: AbstractLoss
    optimizer: optax.GradientTransformation
    ema_decay: Float[Array, ""] | None = eqx.field(
        converter=lambda decay: None if decay is None else as_float(decay)
    )
    batch_size: int
    scaling: Scaling | None = None  # of minibatches in the user's units


def initial_state(params: PyTree, config: TrainingConfig) -> FitState:
    """Return the state before the first iteration."""
    average = None if config.ema_decay is None else params
    variance = find_fitted(config.frozen)
    if variance is not None and variance.errors is None:  # the estimate was not started
        variance = None
    opt_state = config.optimizer.init(params)
    return FitState(params, average, opt_state, variance, jnp.zeros((), jnp.int32))


def model_of(params: PyTree, state: FitState, config: TrainingConfig) -> DiffusionModel:
    """Combine trained and frozen parts into a model with the reverse variance of `state`."""
    model = eqx.combine(params, config.frozen)
    return model if state.variance is None else replace_fitted(model, lambda _: state.variance)


def _iterate(
    key: Array, state: FitState, config: TrainingConfig, source: AbstractSource
) -> tuple[FitState, Float[Array, ""], Bool[Array, ""]]:
    """Return the state after an iteration, the loss, and whether loss and gradient are finite."""
    key_batch, key_loss, key_errors = jax.random.split(key, 3)
    x_0, context = source.batch(key_batch, config.batch_size)
    context = None if context is None else jnp.asarray(context, float)
    process = eqx.combine(state.params, config.frozen).process
    is_allowed = jnp.all(process.support(x_0))  # before the cast, which truncates discrete data
    x_0 = jnp.asarray(x_0, process.dtype)
    x_0 = x_0 if config.scaling is None else config.scaling.to_model(x_0)

    def objective(params: PyTree) -> Float[Array, ""]:
        return config.loss(key_loss, model_of(params, state, config), x_0, context)

    loss, gradient = jax.value_and_grad(objective)(state.params)
    if not isinstance(source, InMemory):  # the rows of an array have been checked
        loss = jnp.where(is_allowed, loss, jnp.nan)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    # A line search re-evaluates the loss, with the minibatch and the noise of this iteration.
    extra = {"value": loss, "grad": gradient, "value_fn": objective}
    optimizer = optax.with_extra_args_support(config.optimizer)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if config.ema_decay is not None:  # see the module docstring; written as an increment
        decay = jnp.minimum(config.ema_decay, (1 + state.iteration) / (10 + state.iteration))
        average = jax.tree.map(
            lambda old, new: old + ((1 - decay) * (new - old)).astype(old.dtype), average, params
        )
    variance = state.variance
    if variance is not None:  # with the weights of `FitResult.model`
        model = model_of(params if average is None else average, state, config)
        variance = updated(key_errors, model, variance, x_0, context, state.iteration)
    return FitState(params, average, opt_state, variance, state.iteration + 1), loss, finite


@eqx.filter_jit
def run_chunk(
    key: Array,
    state: FitState,
    config: TrainingConfig,
    source: AbstractSource,
    stop: Int[Array, ""],
    length: int,
) -> tuple[FitState, Float[Array, " length"], Bool[Array, ""]]:
    """Iterate until `stop` iterations, `length` more iterations or a non-finite loss is reached.

    A while loop with a traced end, not a scan, so that a shorter last chunk uses the same compiled
    function. The input state is not donated: it is required after an interrupt or a failure.

    Returns:
        The state; the losses, which are NaN beyond the last iteration; and whether all losses and
        gradients are finite.
    """
    start = state.iteration

    def unfinished(carry: tuple[FitState, Array, Array]) -> Bool[Array, ""]:
        state, _, finite = carry
        return finite & (state.iteration < jnp.minimum(stop, start + length))

    def body(carry: tuple[FitState, Array, Array]) -> tuple[FitState, Array, Array]:
        state, losses, _ = carry
        key_i = jax.random.fold_in(key, state.iteration)
        new, loss, finite = _iterate(key_i, state, config, source)
        return new, losses.at[state.iteration - start].set(loss.astype(losses.dtype)), finite

    blank = jnp.full(length, jnp.nan, jnp.result_type(float))
    return jax.lax.while_loop(unfinished, body, (state, blank, jnp.ones((), bool)))


# Validation ---------------------------------------------------------------------------------------


@eqx.filter_jit
def mean_elbo(
    key: Array,
    model: DiffusionModel,
    data: Array,
    context: Array | None,
    steps: AbstractSteps,
    block: int,
) -> Float[Array, ""]:
    """Return the mean ELBO of data in model units, in nats per event, in blocks of `block` data."""

    def one(key: Array, x_0: Array, context: Array | None) -> Float[Array, ""]:
        contexts = None if context is None else context[None]
        return bound(key, model, x_0[None], contexts, steps).value

    keys = jax.random.split(key, data.shape[0])
    return jnp.mean(map_in_blocks(one, (keys, data, context), block))
