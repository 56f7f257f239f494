"""Checks that the parts of a model are compatible, without running the network."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..checks.arguments import check_broadcast, check_callable, check_instance
from ..denoisers.base import AbstractDenoiser
from ..networks.layers.layout import num_categories_of
from ..predictions.prediction import AbstractPrediction, Data
from ..processes import AbstractProcess, GaussianDiffusion
from ..processes.base import Time
from ..schedules import AbstractSchedule
from .scaling import Scaling

Network = Callable[[Array, Time, Array | None], Array]


def check_process(process: object, network: object) -> None:
    """Check the types of the process and the network.

    Raises:
        TypeError: `process` is not a process, or `network` is not callable as a network.
    """
    # Separate remedies for swapped arguments and for a schedule in place of a process.
    remedy = ", such as GaussianDiffusion(schedule)"
    if isinstance(network, AbstractProcess):
        remedy += ": process is the first argument and network the second"
    elif isinstance(process, AbstractSchedule):
        remedy = ": make one from the schedule, GaussianDiffusion(schedule)"
    check_instance("process", process, AbstractProcess, remedy=remedy)
    if check_callable("network", network) and hasattr(network, "reverse_kernel"):
        raise TypeError("network=<DiffusionModel> is a whole model: pass its .network.")


def check_parts(
    process: AbstractProcess,
    network: Network,
    prediction: AbstractPrediction,
    scaling: Scaling | None,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> None:
    """Check that parts of the right types are compatible.

    Raises:
        TypeError: `scaling` is not a `Scaling`.
        ValueError: incompatible parts; the message names the part.
    """
    _check_settings(process, event_shape)
    check_scaling(scaling, process, event_shape)
    _check_encoding(process, network)
    if isinstance(network, AbstractDenoiser) and isinstance(prediction, Data):
        _check_levels(process, network)
    _check_network(process, network, prediction, event_shape, context_shape)


def check_scaling(
    scaling: Scaling | None, process: AbstractProcess, event_shape: tuple[int, ...]
) -> None:
    """Check a scaling of events.

    Raises:
        TypeError: not a `Scaling`.
        ValueError: discrete data, or a shape that does not broadcast against the event.
    """
    if scaling is None:
        return
    remedy = ", such as Scaling(loc, scale) or Scaling.from_data(data)"
    check_instance("scaling", scaling, Scaling, remedy=remedy)
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(
            f"scaling was given, but the data of {type(process).__name__} are states, not numbers: "
            "leave it out."
        )
    check_broadcast("scaling.loc", scaling.loc.shape, event_shape)
    check_broadcast("scaling.scale", scaling.scale.shape, event_shape)


def check_takes_context(name: str, context_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the model's shape of contexts; without one, a given `name` is a ValueError."""
    if context_shape is None:
        raise ValueError(f"{name} was given, but the model has no context_shape.")
    return context_shape


def check_context_scaling(scaling: Scaling | None, context_shape: tuple[int, ...] | None) -> None:
    """Check a scaling of contexts.

    Raises:
        TypeError: not a `Scaling`.
        ValueError: a model without contexts, or a shape that does not broadcast against them.
    """
    if scaling is None:
        return
    check_instance("context_scaling", scaling, Scaling, remedy=", such as Scaling(loc, scale)")
    context_shape = check_takes_context("context_scaling", context_shape)
    check_broadcast("context_scaling.loc", scaling.loc.shape, context_shape)
    check_broadcast("context_scaling.scale", scaling.scale.shape, context_shape)


def _check_settings(process: AbstractProcess, event_shape: tuple[int, ...]) -> None:
    """Check that settings per coordinate have one entry for each coordinate of an event.

    Raises:
        ValueError: a rate or numbers of categories that do not broadcast against the event.
    """
    for name, setting in (("rate", "rate"), ("num_categories", "counts")):
        shape = np.shape(getattr(process, setting, 0))
        check_broadcast(f"process.{name}", shape, event_shape)


def _check_encoding(process: AbstractProcess, network: Network) -> None:
    """Check that a network of this package encodes categories if and only if the data have them.

    Raises:
        ValueError: its `num_categories` is not the chain's number of states.
    """
    name = type(process).__name__
    if process.num_categories is None:
        # Networks take bits as numbers or as two categories.
        allowed = {None, 2} if process.support.is_discrete else {None}
        remedy = f"the data of {name} have no categories: make it without"
    else:
        states = getattr(process, "num_states", process.num_categories)
        allowed = {states}
        remedy = (
            f"the chain of {name} has {states} states, which are not numbers: make it, as an MLP, "
            f"a UNet or a MultiScaleConv, with num_categories={states}"
        )
    for found in num_categories_of(network) - allowed:
        made = "without num_categories" if found is None else f"with num_categories={found}"
        raise ValueError(f"network was made {made}, but {remedy}.")


def _check_levels(process: AbstractProcess, network: AbstractDenoiser) -> None:
    """Check that an analytic denoiser has the noise levels of the chain.

    Raises:
        ValueError: it has another schedule.
    """
    schedule = getattr(network, "schedule", getattr(network, "process", process.schedule))
    schedule = getattr(schedule, "schedule", schedule)  # of a process
    levels, expected = schedule.log_snr(), process.schedule.log_snr()
    # Of traced levels, whose values are unknown, only the number is compared.
    is_traced = isinstance(levels, Tracer) or isinstance(expected, Tracer)
    differ = levels.shape != expected.shape
    if differ or not (is_traced or np.allclose(levels, expected, rtol=1e-4)):
        raise ValueError(
            f"network is denoisers.{type(network).__name__} for another schedule than the "
            "process's: make "
            "it with process.schedule."
        )


def _check_network(
    process: AbstractProcess,
    network: Network,
    prediction: AbstractPrediction,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> None:
    """Check that the raw output of the network has the shape that the prediction requires.

    Raises:
        ValueError: it cannot be called, or returns another shape.
    """
    expected = prediction.output_shape(process, event_shape)
    try:
        output = raw_output(process, network, event_shape, context_shape)
    except Exception as error:
        raise ValueError(
            "network could not be called as network(x_t, t, context) with x_t of shape "
            f"{event_shape} (event_shape), an integer t and context of shape "
            f"{context_shape} (context_shape): {type(error).__name__}: {error}"
        ) from error
    if getattr(output, "shape", None) != expected:
        raise ValueError(
            f"network returns shape {getattr(output, 'shape', output)}, but "
            f"prediction={type(prediction).__name__} with event_shape={event_shape} needs shape "
            f"{expected}. Give the network output_shape={expected} or choose another prediction."
        )


def raw_output(
    process: AbstractProcess,
    network: Network,
    event_shape: tuple[int, ...],
    context_shape: tuple[int, ...] | None,
) -> PyTree:
    """Return shape and dtype of the raw output for one event, without running the network."""
    spec, dtype = jax.ShapeDtypeStruct, jnp.result_type(float)
    context = None if context_shape is None else spec(context_shape, dtype)
    x_t, t = spec(event_shape, process.dtype), spec((), jnp.int32)
    return eqx.filter_eval_shape(network, x_t, t, context)
