"""Models respaced to fewer of their noise levels."""

import equinox as eqx
import jax.numpy as jnp

from ..checks.arguments import check_instance, check_size
from ..networks.wrappers import Respaced
from ..predictions.prediction import KernelMoments
from .model import DiffusionModel


def respaced(model: DiffusionModel, num_steps: int | None) -> DiffusionModel:
    """Return the model with the same network and `num_steps` of the chain's noise levels.

    The result is an ordinary model with a shorter chain: sampling is faster, and the decrease of
    the ELBO measures the loss of accuracy.

    Args:
        model: the model.
        num_steps: number of levels to keep, from 2 to `model.num_steps`; None for all.

    Raises:
        ValueError: more steps than the chain has, or a `KernelMoments` prediction, whose
            moments are those of the chain's own steps.
    """
    check_instance("model", model, DiffusionModel)
    if num_steps is None:
        return model
    num_steps = check_size("num_steps", num_steps, least=None)
    if num_steps == model.num_steps:
        return model
    if isinstance(model.prediction, KernelMoments):
        raise ValueError(
            f"num_steps={num_steps} cannot shorten a chain whose prediction is KernelMoments: "
            f"its moments are those of the chain's own {model.num_steps} steps."
        )
    # The network is evaluated at the original times of the kept levels.
    schedule = model.process.schedule
    levels = jnp.asarray(schedule.times(num_steps))
    return eqx.tree_at(
        lambda model: (model.process, model.network),
        model,
        (
            model.process.with_schedule(schedule.respace(num_steps)),
            Respaced(model.network, levels),
        ),
    )
