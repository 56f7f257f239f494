"""Classifier-free guidance of a whole model: the kernel changes, and nothing that uses it."""

from typing import TYPE_CHECKING, Any

import equinox as eqx

from .networks.classifier_free import ClassifierFree
from .prediction import KernelMoments
from .processes import GaussianDiffusion

if TYPE_CHECKING:
    from .model import DiffusionModel


def guided(model: "DiffusionModel", weight: Any) -> "DiffusionModel":
    """The model, leaning towards its context: see `networks.classifier_free`.

    Every sampler, program and method takes the result like any other model. Called without a
    context it is the model itself.

    Args:
        model: whose network has a context and can do without, fit with `losses.ContextDropout`.
        weight: w of (1 + w) conditional - w unconditional; 0 is no guidance.

    Raises:
        ValueError: the network cannot do without its context, or the prediction is a
            `KernelMoments`, whose channels do not combine; or `weight` is not one finite number.

    Example:
        >>> x = dp.sample(key, model.guided(1.5), (1_000,), context=jax.nn.one_hot(3, 10))
    """
    if model.context_shape is None or model.needs_context:
        raise ValueError(
            "guided needs a network with a context that it can do without: wrap it in "
            "networks.OptionalContext and fit it with losses.ContextDropout."
        )
    if isinstance(model.prediction, KernelMoments):
        raise ValueError(  # noqa: TRY004 (two parts that do not suit each other)
            "guided cannot combine the channels of KernelMoments: use another prediction."
        )
    wanted = model.prediction.output_shape(model.process, model.event_shape)
    is_real = isinstance(model.process, GaussianDiffusion)
    has_variance = is_real and wanted != model.event_shape
    network = ClassifierFree(model.network, weight, has_variance=has_variance)
    return eqx.tree_at(lambda model: model.network, model, network)
