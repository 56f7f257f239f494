"""Models whose E[x_0 | x_t] is clipped to bounds of the data.

The exact E[x_0 | x_t] of bounded data lies within the bounds. A network's may not, in particular
under strong guidance or at states outside the training distribution, and the error then grows from
step to step. The estimate of x_0 is clipped, and x_t is not, so that its noise is unchanged.

References:
    Ho et al. 2020, section 3.2 (in their code); Saharia et al. 2022, section 2.3 ("static
    thresholding").
"""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ..checks.arguments import check_broadcast, check_instance, described
from ..checks.arrays import as_array, as_numbers
from ..predictions.prediction import AbstractPrediction, KernelMoments
from ..processes import AbstractProcess, GaussianEstimate
from ..processes.base import Time
from ..processes.support import check_real
from .model import DiffusionModel


@final
class Clipped(AbstractPrediction):
    """Prediction with E[x_0 | x_t] clipped to bounds. Constructed by `clipped`.

    Args:
        prediction: the prediction to clip, of real data.
        low, high: bounds in model units; numbers, or arrays that broadcast against the event.
    """

    prediction: AbstractPrediction
    low: Float[Array, "..."]
    high: Float[Array, "..."]

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        return self.prediction.output_shape(process, event_shape)

    def estimate(
        self, process: AbstractProcess, raw: Array, x_t: Array, t: Time
    ) -> GaussianEstimate:
        estimate = self.prediction.estimate(process, raw, x_t, t)
        mean = jnp.clip(estimate.mean, self.low, self.high)
        return GaussianEstimate(mean, estimate.variance)


def clipped(model: DiffusionModel, low: ArrayLike, high: ArrayLike) -> DiffusionModel:
    """Return the model with E[x_0 | x_t] clipped to two bounds.

    The result is an ordinary model for samplers, programs and methods; its ELBO differs from that
    of `model`.

    Args:
        model: a model of real data with a scaling, which `fit` or the user sets.
        low, high: bounds of the data in the user's units, such as 0 and 256 for eight-bit images;
            numbers, or arrays that broadcast against the event.

    Raises:
        ValueError: discrete data, a `KernelMoments` prediction, a model without a scaling, or
            bounds that are not increasing.

    Example:
        >>> x = dp.sample(key, dp.clipped(dp.guided(model, 4.0), 0, 256), (16,), context=label)
    """
    check_instance("model", model, DiffusionModel)
    check_real("clipped", model.process)
    if isinstance(model.prediction, KernelMoments):
        raise ValueError(
            "clipped cannot bound the moments of a kernel (KernelMoments): use another prediction."
        )
    if model.scaling is None:
        raise ValueError(
            "clipped requires the scaling of the data: fit the model first, or make it with "
            "scaling=dp.Scaling(loc, scale)."
        )
    bounds: list[Array] = []
    for name, bound in (("low", low), ("high", high)):
        bounds.append(as_array(name, as_numbers(name, bound), float))
        check_broadcast(name, bounds[-1].shape, model.event_shape)
    below = bounds[0] < bounds[1]
    if not isinstance(below, Tracer) and not np.all(below):
        raise ValueError(f"low={described(low)} must be less than high={described(high)}.")
    # A negative scale reverses the order of the bounds.
    ends = [model.scaling.to_model(bound) for bound in bounds]
    prediction = Clipped(model.prediction, jnp.minimum(*ends), jnp.maximum(*ends))
    return eqx.tree_at(lambda model: model.prediction, model, prediction)
