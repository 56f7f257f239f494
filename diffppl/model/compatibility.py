"""Checks that the parts of a model go together, made with it and without running the network."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..checks.arguments import check_broadcast, check_callable, check_instance
from ..denoisers.base import AbstractDenoiser
from ..networks.made_for import input_states
from ..predictions.prediction import AbstractPrediction, Data
from ..processes import AbstractProcess, GaussianDiffusion
from ..schedules import AbstractSchedule
from .scaling import Scaling


def check_process(process: Any, network: Any) -> None:
    """Refuse what is no process, and what cannot be called as a network.

    Raises:
        TypeError: either.
    """
    remedy = ", such as GaussianDiffusion(schedule)"
    if isinstance(network, AbstractProcess):
        remedy += ": process comes first, and then network"
    elif isinstance(process, AbstractSchedule):
        remedy = f": make one of the schedule, GaussianDiffusion({process!r})"
    check_instance("process", process, AbstractProcess, remedy=remedy)
    if check_callable("network", network) and hasattr(network, "reverse_kernel"):
        raise TypeError("network=<DiffusionModel> is a whole model: pass its .network.")


def check_parts(
    process: AbstractProcess,
    network: Any,
    prediction: AbstractPrediction,
    scaling: Any,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> None:
    """Refuse parts that do not go together, once each is what it should be.

    Raises:
        TypeError: `scaling` is no `Scaling`.
        ValueError: everything else; the message names the part.
    """
    _check_settings(process, event_shape)
    check_scaling(scaling, process, event_shape)
    _check_encoding(process, network)
    if isinstance(network, AbstractDenoiser) and isinstance(prediction, Data):
        _check_levels(process, network)
    _check_network(process, network, prediction, event_shape, context_shape)


def check_scaling(scaling: Any, process: AbstractProcess, event_shape: tuple[int, ...]) -> None:
    """Refuse what is no scaling, or none of these events.

    Raises:
        TypeError: not a `Scaling`.
        ValueError: states, or a shape that does not broadcast against the event.
    """
    if scaling is None:
        return
    remedy = ", such as Scaling(loc, scale) or Scaling.from_data(data)"
    check_instance("scaling", scaling, Scaling, remedy=remedy)
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(  # noqa: TRY004 (two parts that do not suit each other)
            f"scaling was given, but the data of {type(process).__name__} are states, not numbers: "
            "leave it out."
        )
    check_broadcast("scaling.loc", scaling.loc.shape, event_shape)
    check_broadcast("scaling.scale", scaling.scale.shape, event_shape)


def check_context_scaling(scaling: Any, context_shape: tuple[int, ...] | None) -> None:
    """Refuse what is no scaling of a context.

    Raises:
        TypeError: not a `Scaling`.
        ValueError: there are no contexts, or a shape that does not broadcast against them.
    """
    if scaling is None:
        return
    check_instance("context_scaling", scaling, Scaling, remedy=", such as Scaling(loc, scale)")
    if context_shape is None:
        raise ValueError("context_scaling was given, but the model has no context_shape.")
    check_broadcast("context_scaling.loc", scaling.loc.shape, context_shape)
    check_broadcast("context_scaling.scale", scaling.scale.shape, context_shape)


def _check_settings(process: AbstractProcess, event_shape: tuple[int, ...]) -> None:
    """Refuse a process with settings for other coordinates than an event has.

    Raises:
        ValueError: a rate or a number of categories that does not broadcast against the event.
    """
    for name, setting in (("rate", "rate"), ("num_categories", "counts")):
        shape = np.shape(getattr(process, setting, 0))
        check_broadcast(f"process.{name}", shape, event_shape)


def _check_encoding(process: AbstractProcess, network: Any) -> None:
    """Refuse a network of this package that takes categories for numbers, or numbers for them.

    Raises:
        ValueError: a `num_categories` other than the chain's number of states.
    """
    name = type(process).__name__
    if process.num_categories is None:
        allowed = {None, 2} if process.support.is_discrete else {None}
        remedy = f"the data of {name} have no categories: make it without"
    else:
        states = getattr(process, "num_states", process.num_categories)
        allowed = {states}
        remedy = (
            f"the chain of {name} has {states} states, which are no numbers: make it, as an MLP, a "
            f"UNet or a MultiScaleConv, with num_categories={states}"
        )
    for found in input_states(network) - allowed:
        made = "without num_categories" if found is None else f"with num_categories={found}"
        raise ValueError(f"network was made {made}, but {remedy}.")


def _check_levels(process: AbstractProcess, network: AbstractDenoiser) -> None:
    """Refuse a known answer for other noise levels than the chain's.

    Raises:
        ValueError: its schedule is another.
    """
    schedule = getattr(network, "schedule", getattr(network, "process", process.schedule))
    schedule = getattr(schedule, "schedule", schedule)  # of a process
    theirs, ours = schedule.log_snr(), process.schedule.log_snr()
    known = not any(isinstance(levels, Tracer) for levels in (theirs, ours))
    if theirs.shape != ours.shape or (known and not np.allclose(theirs, ours, rtol=1e-4)):
        raise ValueError(
            f"network is a {type(network).__name__} for another schedule than the process's: make "
            "it with process.schedule."
        )


def _check_network(
    process: AbstractProcess,
    network: Any,
    prediction: AbstractPrediction,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> None:
    """Refuse a network whose raw output has not the shape that the prediction needs.

    Raises:
        ValueError: it cannot be called, or returns another shape.
    """
    wanted = prediction.output_shape(process, event_shape)
    try:
        output = raw_output(process, network, event_shape, context_shape)
    except Exception as error:
        raise ValueError(
            "network could not be called as network(x_t, t, context) with x_t of shape "
            f"{event_shape} (event_shape), an integer t and context of shape "
            f"{context_shape} (context_shape): {type(error).__name__}: {error}"
        ) from error
    if getattr(output, "shape", None) != wanted:
        raise ValueError(
            f"network returns shape {getattr(output, 'shape', output)}, but "
            f"prediction={type(prediction).__name__} with event_shape={event_shape} needs shape "
            f"{wanted}. Give the network output_shape={wanted} or choose another prediction."
        )


def raw_output(
    process: AbstractProcess,
    network: Any,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> Any:
    """Shape and dtype of the raw output for one event, found without running the network."""
    spec, dtype = jax.ShapeDtypeStruct, jnp.result_type(float)
    context = None if context_shape is None else spec(context_shape, dtype)
    x_t, t = spec(event_shape, process.dtype), spec((), jnp.int32)
    return eqx.filter_eval_shape(network, x_t, t, context)
