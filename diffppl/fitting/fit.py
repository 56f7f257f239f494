"""Fitting a model to data: `fit` and its default optimiser.

The negative ELBO (or another loss, see `losses`) is minimised by stochastic gradient descent over
minibatches. A learned schedule receives reparameterised gradients: with the key of an iteration
fixed, x_t is a differentiable function of the schedule.

References:
    Sohl-Dickstein et al. 2015, sections 2.3 and 2.4; Kingma and Ba 2015 (Adam).
"""

import functools
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ..checks.arguments import check_flag, check_float, check_key, check_size
from ..checks.arrays import Numbers
from ..data import AbstractSource
from ..model import DiffusionModel
from ..model.scaling import Scaling
from .checkpoints import Checkpoints, Run
from .checks import check_names, check_options
from .decay import check_updates
from .inputs import as_dataset, column_names, minibatches, representative
from .loop import starting_point, train, validation_of
from .losses import AbstractLoss, ELBOLoss
from .misfit import warn_if_misfit
from .prepare import prepared, trainable_mask
from .result import FitResult
from .run_config import RunConfig
from .training import TrainingConfig


def fit(
    key: Array,
    model: DiffusionModel,
    data: Numbers | AbstractSource,
    *,
    num_iterations: int,
    batch_size: int = 512,
    context: Numbers | None = None,
    loss: AbstractLoss = ELBOLoss(),
    optimizer: optax.GradientTransformation | None = None,
    ema_decay: float | None = 0.999,
    scaling: Scaling | None = None,
    validation_data: Numbers | None = None,
    validation_context: Numbers | None = None,
    validation_every: int | None = None,
    trainable: PyTree = None,
    resume: FitResult | None = None,
    checkpoints: Checkpoints | None = None,
    chunk: int = 100,
    progress_bar: bool = True,
    **unknown: object,
) -> FitResult:
    """Fit a model to data.

    Trains the network's inexact arrays and, for `schedules.Learned`, the levels of the schedule.
    The arguments are not modified; the fitted model is in the result. An interrupt (Ctrl-C) ends
    the fit, which then returns the partial result with a warning.

    Args:
        key: a typed JAX key. Iteration i draws from its `fold_in` of i only.
        model: the initial model.
        data: in the user's units, shape `(n, *event_shape)`; or an `AbstractSource` of `dp.data`,
            from which minibatches are drawn.
        num_iterations: total number of minibatches, including those of `resume`.
        batch_size: size of a minibatch; rows of an array are drawn with replacement.
        context: one per datum, shape `(n, *context_shape)`, if the network takes one. A source
            draws its own.
        loss: `losses.ELBOLoss()`, `losses.SimpleLoss()` or `losses.WeightedLoss(weights)`.
        optimizer: any optax optimiser; `default_optimizer(num_iterations)` if None.
        ema_decay: decay of the moving average of the weights, with which `result.model` is
            returned; None for no averaging.
        scaling: map from the chain's units to the user's. If None, a model of real data without
            one uses `Scaling.from_data` of the data, or of up to 10,000 draws of a source: a
            location and a scale for each column of a table, one of each for images. (Contexts are
            scaled as well, unless the model has a `context_scaling`.)
        validation_data, validation_context: held-out data, whose ELBO is displayed and recorded.
        validation_every: iterations between validations; by default `num_iterations // 20`.
        trainable: which parameters to train, as a pytree of booleans or functions accepted by
            `equinox.partition(model, trainable)`. Only inexact arrays of the network and the
            levels of a learned schedule are trained; a `FittedVariance` is estimated separately.
        resume: a result to continue from. With the same key, data and options, the run equals an
            uninterrupted one. A finished run can be extended with more iterations: the default
            optimiser then has the learning rate of the longer run; another one must have a
            schedule of that length.
        checkpoints: a `Checkpoints(folder)`: if the process is killed, repeating the call
            continues from the last checkpoint.
        chunk: iterations per compiled call; the progress bar and the check for NaN are updated
            once per chunk.
        progress_bar: whether to show a progress bar.
        **unknown: raises a `TypeError` that names the intended argument.

    Returns:
        A `FitResult`: `model`, `last_model`, `history` and the `state` to resume from.

    Raises:
        TypeError, ValueError: invalid input, a folder of another run, or an optimizer whose
            learning rate has decayed to zero for half of the iterations or more. Raised before
            training.
        OSError: the folder of the checkpoints cannot be written. Raised before training.
        NonFiniteLossError: the loss or its gradient became NaN or infinite. Its `result` is the
            one before the chunk in which this happened.

    Warns:
        UserWarning: scaled data without unit second moment; columns that are constant, below the
            noise of the first level or the floating-point resolution, or have outliers; a chain
            that does not end in noise; or a checkpoint that could not be written (full disk).

    Example:
        >>> result = dp.fit(jax.random.key(0), model, data, num_iterations=5_000)
        >>> result.model, dp.plots.history(result.history)
    """
    check_names(unknown)
    check_options(model, loss, optimizer, ema_decay, scaling, resume)
    key, progress_bar = check_key(key), check_flag("progress_bar", progress_bar)
    sizes = {"num_iterations": num_iterations, "batch_size": batch_size, "chunk": chunk}
    num_iterations, batch_size, chunk = (check_size(name, n) for name, n in sizes.items())
    every = max(num_iterations // 20, 1) if validation_every is None else validation_every
    every = check_size("validation_every", every)
    dataset = as_dataset(data, context, model)
    loss.check(model)
    mask = trainable_mask(model, trainable)
    key_fit, key_validation, key_examples = jax.random.split(key, 3)
    examples, contexts = representative(key_examples, dataset, model)
    model = prepared(model, scaling, examples, contexts) if resume is None else resume.last_model
    is_default = optimizer is None  # its schedule then depends on num_iterations
    optimizer = default_optimizer(num_iterations) if optimizer is None else optimizer
    settings: dict[str, Any] = dict(
        loss=loss, optimizer=optimizer, ema_decay=ema_decay, batch_size=batch_size
    )
    run = None
    if checkpoints is not None:
        length = num_iterations if is_default else None
        run_config = RunConfig.of(key, model, mask, dataset, num_iterations=length, **settings)
        run = Run(checkpoints, run_config)
        model = run.model  # with the scaling computed when the run was started
    validation = validation_of(
        key_validation, model, validation_data, validation_context, batch_size
    )
    source, source_scaling = minibatches(dataset, model)
    params, frozen = eqx.partition(model, mask)
    config = TrainingConfig(frozen, scaling=source_scaling, **settings)
    start = starting_point(params, config, resume, run, num_iterations)
    done = int(start.state.iteration)
    if not is_default:
        check_updates(optimizer, params, done, num_iterations)
    warn_if_misfit(model, examples, column_names(data))
    bar = tqdm(total=num_iterations, initial=done, disable=not progress_bar, desc="fit")
    return train(key_fit, start, config, source, num_iterations, chunk, validation, every, run, bar)


def default_optimizer(
    num_iterations: int, learning_rate: float = 1e-3
) -> optax.GradientTransformation:
    """Return Adam with gradients clipped to norm 1, a warm-up and a cosine decay to zero.

    Args:
        num_iterations: total number of iterations of the fit.
        learning_rate: peak rate, after a warm-up of a twentieth of the fit (at most 500
            iterations).
    """
    rate = check_float("learning_rate", learning_rate, 0.0)
    return _default_optimizer(check_size("num_iterations", num_iterations), rate)


@functools.cache  # identical functions for identical arguments, so that no fit recompiles
def _default_optimizer(num_iterations: int, learning_rate: float) -> optax.GradientTransformation:
    warmup = min(max(num_iterations // 20, 1), 500)
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.1 * learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_iterations, warmup + 1),
    )
    # Flattened: each of the hundreds of small arrays of a deep network would need its own kernels.
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))
