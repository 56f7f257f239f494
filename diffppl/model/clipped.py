"""A model whose guess at x_0 stays within bounds: the kernel changes, and nothing that uses it.

The exact E[x_0 given x_t] of data between two bounds lies between them. A network's may not, above
all where it is guided hard or asked about states that it never saw; one step then takes the next
one further away. Data are clipped, not draws: x_t is as noisy as it should be.

References:
    Ho et al. 2020, section 3.2 (in their code); Saharia et al. 2022, section 2.3 ("static
    thresholding").
"""

from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ..checks.arguments import check_broadcast, described
from ..checks.arrays import as_array, as_numbers
from ..predictions.prediction import AbstractPrediction, KernelMoments
from ..processes import AbstractProcess, GaussianDiffusion, GaussianEstimate
from ..processes.base import Time

if TYPE_CHECKING:
    from .model import DiffusionModel


@final
class Clipped(AbstractPrediction):
    """Another prediction, whose E[x_0 given x_t] is kept between bounds. `model.clipped` makes one.

    Args:
        prediction: for real data.
        low, high: in model units; numbers, or arrays that broadcast against the event.
    """

    prediction: AbstractPrediction
    low: Float[Array, "..."]
    high: Float[Array, "..."]

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """That of the other prediction."""
        return self.prediction.output_shape(process, event_shape)

    def estimate(
        self, process: AbstractProcess, raw: Array, x_t: Array, t: Time
    ) -> GaussianEstimate:
        estimate = self.prediction.estimate(process, raw, x_t, t)
        mean = jnp.clip(estimate.mean, self.low, self.high)
        return GaussianEstimate(mean, estimate.variance)


def clipped(model: "DiffusionModel", low: ArrayLike, high: ArrayLike) -> "DiffusionModel":
    """The model, with E[x_0 given x_t] kept between two bounds.

    Every sampler, program and method takes the result like any other model; its ELBO is its own.

    Args:
        model: of real data, with a scaling: fitted, or made with one.
        low, high: bounds of the data in the user's units, such as 0 and 256 for eight-bit images;
            numbers, or arrays that broadcast against the event.

    Raises:
        ValueError: bits or categories, a `KernelMoments` prediction, a model without a scaling, or
            bounds that are none.

    Example:
        >>> x = dp.sample(key, model.guided(4.0).clipped(0, 256), (16,), context=label)
    """
    if not isinstance(model.process, GaussianDiffusion):
        raise ValueError(  # noqa: TRY004 (two parts that do not suit each other)
            f"clipped is for real data, but the process is {type(model.process).__name__}."
        )
    if isinstance(model.prediction, KernelMoments):
        raise ValueError(  # noqa: TRY004 (as above)
            "clipped cannot bound the moments of a kernel (KernelMoments): use another prediction."
        )
    if model.scaling is None:
        raise ValueError(
            "clipped needs to know the scale of the data: fit the model first, or make it with "
            "scaling=dp.Scaling(loc, scale)."
        )
    bounds: list[Any] = []
    for name, bound in (("low", low), ("high", high)):
        bounds.append(as_array(name, as_numbers(name, bound), float))
        check_broadcast(name, bounds[-1].shape, model.event_shape)
    below = bounds[0] < bounds[1]
    if not isinstance(below, Tracer) and not np.all(below):
        raise ValueError(f"low={described(low)} must be less than high={described(high)}.")
    ends = [model.scaling.to_model(bound) for bound in bounds]
    prediction = Clipped(model.prediction, jnp.minimum(*ends), jnp.maximum(*ends))
    return eqx.tree_at(lambda model: model.prediction, model, prediction)
