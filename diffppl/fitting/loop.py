"""Python loop of `fit` around the compiled one: validations, the progress bar, checkpoints.

It runs in chunks, so that bars, interrupts and files stay outside compiled code.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ..checks.arrays import Numbers
from ..data import AbstractSource
from ..likelihood.elbo import AllSteps, SampledSteps
from ..model import DiffusionModel
from ..model.inputs import as_batch
from .checkpoints import Run
from .checks import resumed
from .result import FitResult, History, NonFiniteLossError
from .training import FitState, TrainingConfig, initial_state, mean_elbo, model_of, run_chunk


def validation_of(
    key: Array, model: DiffusionModel, data: Numbers | None, context: Numbers | None, block: int
) -> Callable[[DiffusionModel], float] | None:
    """Return the ELBO of held-out data, as a function of a model; None without data.

    Args:
        key: used at each validation, so that their differences have less noise.
        model: its scaling is that of the models to be validated.
        data, context: in the user's units.
        block: number of data that are evaluated at once.
    """
    if data is None:
        if context is not None:
            raise ValueError("validation_context was given without validation_data.")
        return None
    names = ("validation_data", "validation_context")
    x_0, context = as_batch(model, data, context, names)
    # Short chains: all terms of the bound, which leaves no sampling error of t.
    steps = AllSteps() if model.num_steps <= 16 else SampledSteps(8)
    return lambda model: float(mean_elbo(key, model, x_0, context, steps, block))


def result_of(state: FitState, history: History, config: TrainingConfig) -> FitResult:
    """Return the result of a fit in some state."""
    last = model_of(state.params, state, config)
    average = last if state.average is None else model_of(state.average, state, config)
    return FitResult(average, last, history, state)


def starting_point(
    params: PyTree,
    config: TrainingConfig,
    resume: FitResult | None,
    run: Run | None,
    num_iterations: int,
) -> FitResult:
    """Return the last checkpoint of a run, else `resume`, else the initial parameters."""
    state, history = initial_state(params, config), History(config.loss.label)
    if resume is not None:
        state, history = resumed(state, resume, num_iterations), resume.history
    if run is not None:
        state, history = run.restore(state, history, num_iterations)
    return result_of(state, history, config)


def train(
    key: Array,
    start: FitResult,
    config: TrainingConfig,
    source: AbstractSource,
    num_iterations: int,
    chunk: int,
    validation: Callable[[DiffusionModel], float] | None,
    every: int,
    run: Run | None,
    bar: tqdm,
) -> FitResult:
    """Continue a fit until `num_iterations`, or until an interrupt; see `fit`."""
    state, history = start.state, start.history
    done = first = int(state.iteration)
    try:
        while done < num_iterations:
            stop = min(done + chunk, num_iterations)
            if validation is not None:  # a chunk ends where a validation is due
                stop = min(stop, (done // every + 1) * every)
            stop = jnp.asarray(stop, jnp.int32)
            new, losses, finite = run_chunk(key, state, config, source, stop, chunk)
            losses, finite, now = jax.device_get((losses, finite, new.iteration))
            losses = losses[: now - done]
            if not finite:
                before = result_of(state, history, config)
                raise NonFiniteLossError(int(now), float(losses[-1]), before)
            state, history, done = new, history.with_losses(losses), int(now)
            if validation is not None and (done % every == 0 or done == num_iterations):
                elbo = validation(result_of(state, history, config).model)
                history = history.with_validation(done, elbo)
            bar.set_postfix_str(history.summary(), refresh=False)
            bar.update(len(losses))
            if run is not None:
                run.save(done, state, history)
    except KeyboardInterrupt:
        if done == first:  # there is no partial result
            raise
        warnings.warn(
            f"fit was interrupted after {done} of {num_iterations} iterations and returns the "
            "partial result. Pass it as resume= to continue.",
            stacklevel=3,
        )
    finally:
        bar.close()
        if run is not None:
            run.close(done, state, history)
    return result_of(state, history, config)
