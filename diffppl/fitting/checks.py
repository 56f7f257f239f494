"""Errors and warnings of `fit`, before its long work."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ..checks import check_float, check_instance
from ..entry import left_at_the_end
from ..model import DiffusionModel
from ..objectives import prior_term
from ..parts import check_scaling
from ..processes import GaussianDiffusion
from .losses import AbstractLoss
from .result import FitResult
from .training import FitState

# The mean KL(q(x_T given x_0), pi) that a chain may end with, in nats. Where it is
# alpha_bar_T |x_0|^2 / 2, as for real data, that is a last noise level of 3.2 times the length of
# the data; and the samples' start is then off by at most sqrt(0.05 / 2) = 0.16 in total variation.
MOST_NATS_LEFT = 0.05


# Slips of the pen, and what was meant.
MEANT = {
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
    "progress_bar": "progress",
    "seed": "key, the first argument",
}


def check_names(unknown: dict[str, Any]) -> None:
    """TypeError for arguments that `fit` does not have, with the one that may have been meant."""
    for name in unknown:
        meant = MEANT.get(name)
        remedy = f": pass {meant}" if meant else "; see help(diffppl.fit)"
        raise TypeError(f"fit has no argument {name!r}{remedy}.")


def check_options(
    model: Any, loss: Any, optimizer: Any, ema_decay: Any, scaling: Any, resume: Any
) -> None:
    """Refuse options of the wrong kind, in the words of the caller."""
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


def _kind(tree: Any) -> Any:
    """Structure, shapes and dtypes; a model's without its scaling, which a fit may have set."""
    if isinstance(tree, DiffusionModel):
        tree = (tree.process, tree.network, tree.prediction, tree.event_shape)
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(a.shape, a.dtype) if eqx.is_array(a) else a for a in leaves]


def resumed(fresh: FitState, resume: FitResult, num_iterations: int) -> FitState:
    """The state of `resume`, checked against a fresh one of the same fit.

    Raises:
        ValueError: it has all the iterations already, or other trained arrays, or another
            optimiser's state.
    """
    state = resume.state
    done = int(state.iteration)
    if num_iterations <= done:
        raise ValueError(
            f"num_iterations={num_iterations} counts those already done, and resume has {done}; "
            "ask for more."
        )
    if jax.tree.structure(fresh.params) != jax.tree.structure(state.params):
        raise ValueError("trainable names other arrays than the fit that resume comes from.")
    if _kind(fresh.opt_state) != _kind(state.opt_state):
        raise ValueError(
            "optimizer is not the kind that resume was fit with: its state differs. Pass the same."
        )
    if fresh.average is None or state.average is None:
        return FitState(state.params, fresh.average, state.opt_state, state.iteration)
    return state


def warn_if_misfit(model: DiffusionModel, data: Array) -> None:
    """Warn if scaled data are not of unit scale, or if the chain does not end in noise."""
    data = model.to_model(data[:: max(1, data.shape[0] // 10_000)])
    lines = []
    if isinstance(model.process, GaussianDiffusion):
        moment = float(np.mean(np.square(np.asarray(data, np.float64))))
        if abs(moment - 1) > 0.05:
            lines.append(
                f"data have a mean square of {moment:.3g} in the chain's units, where the chain "
                "expects 1: pass scaling=Scaling.from_data(data)."
            )
    left = float(-jnp.mean(jax.vmap(lambda x: prior_term(model, x))(data)))
    if left > MOST_NATS_LEFT:
        lines.append(
            f"the chain does not end in noise: at t = {model.num_steps} it still holds {left:.3g} "
            f"nats about a datum (at most {MOST_NATS_LEFT} is good){_signal(model, data)}. Samples "
            "start from pure noise, so the weights of the modes will be wrong: use a schedule "
            "that goes further, such as schedules.LogSNRLinear with a larger noise_to_signal."
        )
    for line in lines:
        warnings.warn(line, stacklevel=3)


def _signal(model: DiffusionModel, data: Array) -> str:
    if not isinstance(model.process, GaussianDiffusion):
        return ""
    return f", E|sqrt(alpha_bar_T) x_0| = {float(left_at_the_end(model, data)):.3g}"
