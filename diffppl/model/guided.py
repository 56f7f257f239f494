"""Models with classifier-free guidance."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ..checks.arguments import check_instance, check_pair
from ..networks.classifier_free import ClassifierFree
from ..predictions.prediction import KernelMoments
from ..processes import GaussianDiffusion
from .model import DiffusionModel

ALL_LEVELS = (0.0, math.inf)  # all ratios of noise to signal


def guided(
    model: DiffusionModel, weight: ArrayLike, noise_to_signal: tuple[float, float] = ALL_LEVELS
) -> DiffusionModel:
    """Return the model with classifier-free guidance: see `networks.classifier_free`.

    The result is an ordinary model for samplers, programs and methods. Without a context it equals
    `model`.

    Args:
        model: a model with an optional context, fit with `losses.ContextDropout`.
        weight: w of (1 + w) conditional - w unconditional; 0 is no guidance.
        noise_to_signal: guide only between these two ratios of noise to signal amplitude: guidance
            far above the scale of the data reduces diversity. If draws diverge, see `clipped`.

    Raises:
        ValueError: the network requires its context; the prediction is a `KernelMoments`, whose
            channels do not combine; `weight` is not one finite number; or `noise_to_signal` is not
            two ratios, the smaller first.

    Example:
        >>> x = dp.sample(key, dp.guided(model, 1.5), (1_000,), context=jax.nn.one_hot(3, 10))
        >>> plainer = dp.guided(model, 4.0, noise_to_signal=(0.1, 3.0))
    """
    check_instance("model", model, DiffusionModel)
    if model.context_shape is None or model.needs_context:
        raise ValueError(
            "guided requires a network with an optional context: wrap it in "
            "networks.OptionalContext and fit it with losses.ContextDropout."
        )
    if isinstance(model.prediction, KernelMoments):
        raise ValueError(
            "guided cannot combine the channels of KernelMoments: use another prediction."
        )
    low, high = check_pair("noise_to_signal", noise_to_signal, closed=True)
    output_shape = model.prediction.output_shape(model.process, model.event_shape)
    is_real = isinstance(model.process, GaussianDiffusion)
    # A real prediction with more outputs than the event has channels for the variance.
    has_variance = is_real and output_shape != model.event_shape
    ratio = jnp.exp(-0.5 * model.process.schedule.log_snr())  # rises with t
    times = jnp.searchsorted(ratio, low), jnp.searchsorted(ratio, high, side="right") - 1
    network = ClassifierFree(model.network, weight, times, has_variance=has_variance)
    return eqx.tree_at(lambda model: model.network, model, network)
