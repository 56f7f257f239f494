"""Checks of the arguments of `fit`, before training."""

import dataclasses

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from ..checks.arguments import check_float, check_instance
from ..model import DiffusionModel
from ..model.compatibility import check_scaling
from ..model.scaling import Scaling
from ..predictions.variance import replace_fitted
from .losses import AbstractLoss
from .result import FitResult
from .training import FitState

# Frequent misnomers, and the arguments that `fit` has instead.
INTENDED = {
    "learning_rate": "optimizer=default_optimizer(num_iterations, learning_rate)",
    "lr": "optimizer=default_optimizer(num_iterations, learning_rate)",
    "epochs": "num_iterations",
    "num_epochs": "num_iterations",
    "num_steps": "num_iterations",
    "steps": "num_iterations",
    "ema": "ema_decay",
    "labels": "context",
    "contexts": "context",
    "validation": "validation_data",
    "progress": "progress_bar",
    "seed": "key, the first argument",
}


def check_names(unknown: dict[str, object]) -> None:
    """Raise a `TypeError` for an unknown argument of `fit`, with the likely intended one."""
    for name in unknown:
        meant = INTENDED.get(name)
        remedy = f": pass {meant}" if meant else "; see help(diffppl.fit)"
        raise TypeError(f"fit has no argument {name!r}{remedy}.")


def check_options(
    model: DiffusionModel,
    loss: AbstractLoss,
    optimizer: optax.GradientTransformation | None,
    ema_decay: float | None,
    scaling: Scaling | None,
    resume: FitResult | None,
) -> None:
    """Check the types and ranges of options, and that `model` and `scaling` agree with `resume`."""
    check_instance("model", model, DiffusionModel)
    check_instance("loss", loss, AbstractLoss)
    if optimizer is not None:
        remedy = " of optax, such as default_optimizer(num_iterations) or optax.adam(1e-3)"
        check_instance("optimizer", optimizer, optax.GradientTransformation, remedy=remedy)
    if ema_decay is not None:
        check_float("ema_decay", ema_decay, 0.0, 1.0, closed=(True, False))
    check_scaling(scaling, model.process, model.event_shape)
    if resume is None:
        return
    check_instance("resume", resume, FitResult, remedy=", which fit returned")
    if scaling is not None:
        raise ValueError("scaling was given, but a resumed fit keeps its own: leave it out.")
    if _kind(model) != _kind(resume.last_model):
        raise ValueError("model is not the one that resume was fit to: its structure differs.")


def _kind(tree: PyTree) -> tuple:
    """Return structure, shapes and dtypes; of a model, without scalings and fitted variance."""
    if isinstance(tree, DiffusionModel):  # the rest is set by `fit`
        prediction = replace_fitted(tree.prediction, lambda _: None)
        tree = (tree.process, tree.network, prediction, tree.event_shape)
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(a.shape, a.dtype) if eqx.is_array(a) else a for a in leaves]


def resumed(fresh: FitState, resume: FitResult, num_iterations: int) -> FitState:
    """Return the state of `resume`, checked against the initial state of the same fit.

    Raises:
        ValueError: it already has all iterations, other trained arrays, or the state of another
            optimiser.
    """
    state = resume.state
    done = int(state.iteration)
    if num_iterations <= done:
        raise ValueError(
            f"num_iterations={num_iterations} counts those already done, and resume has {done}; "
            "pass a larger number."
        )
    if jax.tree.structure(fresh.params) != jax.tree.structure(state.params):
        raise ValueError("trainable names other arrays than the fit that resume comes from.")
    if _kind(fresh.opt_state) != _kind(state.opt_state):
        raise ValueError(
            "optimizer is not the kind that resume was fit with: its state differs. Pass the same."
        )
    # Averaging was switched on or off: it starts from the last weights, or ends.
    if fresh.average is None or state.average is None:
        return dataclasses.replace(state, average=fresh.average)
    return state
