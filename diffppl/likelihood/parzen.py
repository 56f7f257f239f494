"""Parzen-window density estimates from samples, for comparison with older papers.

    p(x) = (1/n) sum_i N(x; s_i, h^2 I)

over n samples s_i of a model, with the bandwidth h that maximises the log-density of a validation
set. In many dimensions the estimate is a poor measure of a model: with 10,000 samples it is far
below the true log p, does not preserve the ranking of models, and can be higher for samples that
interpolate the data than for the data themselves (Theis, van den Oord and Bethge 2016, section
3.2). Report the ELBO in the first place. For reference, evaluate it with training data as samples:
this is the score of a perfect model, but not the highest attainable.

References:
    Parzen 1962; Breuleux, Bengio and Vincent 2011; Goodfellow et al. 2014, section 5 (the
    protocol); Sohl-Dickstein et al. 2015, table 2 (in bits).
"""

import math
import warnings
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..batching import map_in_blocks
from ..checks.arguments import check_size, described
from ..checks.arrays import Numbers, as_double, check_rows
from .estimate import Estimate

BANDWIDTHS = tuple(np.logspace(-1, 0, 10).tolist())  # of the published protocol, see `parzen`


@final
class ParzenEstimate(eqx.Module):
    """The result of `parzen`.

    Attributes:
        log_likelihood: of the test data, in nats. The error due to the finite set of samples is
            not estimated, so `per_example_error` is NaN; `standard_error` is over test data only.
        bandwidth: the bandwidth selected.
        bandwidths: the candidates.
        validation: mean log-density of the validation data at each candidate, in nats.
    """

    log_likelihood: Estimate
    bandwidth: Float[Array, ""]
    bandwidths: Float[Array, " bandwidths"]
    validation: Float[Array, " bandwidths"]

    def __repr__(self) -> str:
        value, error = self.log_likelihood.value, self.log_likelihood.standard_error
        return (
            f"ParzenEstimate({float(value):.3f} ± {float(error):.3f} nats, "
            f"bandwidth={float(self.bandwidth):.3g})"
        )


def parzen(
    samples: Numbers,
    validation: Numbers,
    x_test: Numbers,
    *,
    bandwidths: Numbers = BANDWIDTHS,
    batch_size: int = 100,
) -> ParzenEstimate:
    """Estimate the log-density of test data by Parzen windows of one bandwidth around samples.

    The published protocol: 10,000 samples, pixel values in [0, 1], ten bandwidths from 0.1 to 1,
    selected on up to 1,000 held-out training images, and 10,000 test images.

    Args:
        samples: draws from a model, shape `(n, *event_shape)`.
        validation, x_test: data in the same units, for the selection and for the result.
        bandwidths: candidates, in the units of the data; ten from 0.1 to 1 by default.
        batch_size: test data evaluated at once; each takes memory for `n` distances.

    Returns:
        A `ParzenEstimate`, in nats per event.

    Raises:
        ValueError: event shapes that disagree, empty arrays, values that are not finite, or
            bandwidths that are not positive.

    Warns:
        UserWarning: the best bandwidth is the smallest or the largest candidate.

    Example:
        >>> samples = dp.sample(key, model, (10_000,)) / 256
        >>> dp.likelihood.parzen(samples, held_out / 256, test / 256)
        ParzenEstimate(220.100 ± 1.900 nats, bandwidth=0.215)
    """
    batch_size = check_size("batch_size", batch_size)
    names = {"samples": samples, "validation": validation, "x_test": x_test}
    arrays = {name: as_double(name, x) for name, x in names.items()}
    shape = arrays["samples"].shape[1:]
    for name, x in arrays.items():
        check_rows(name, x)
        if x.shape[1:] != shape:
            raise ValueError(
                f"{name} has events of shape {x.shape[1:]}, and samples of shape {shape}; they "
                "must agree."
            )
    widths = as_double("bandwidths", bandwidths)
    if widths.ndim != 1 or widths.size == 0 or not np.all(widths > 0):
        raise ValueError(f"bandwidths={described(bandwidths)} must be a list of positive numbers.")
    # Squared distances are |x|^2 + |s|^2 - 2 x.s, which cancels catastrophically for data far from
    # the origin: centre in float64.
    centre = arrays["samples"].mean(axis=0)
    centred = {
        name: jnp.asarray((x - centre).reshape(len(x), -1), float) for name, x in arrays.items()
    }
    log_density = _log_densities(
        centred["samples"], centred["validation"], jnp.asarray(widths, float), batch_size
    )
    means = np.asarray(log_density, np.float64).mean(axis=0)
    best = int(np.argmax(means))
    if widths.size > 1 and widths[best] in (widths.min(), widths.max()):
        warnings.warn(
            f"the best bandwidth, {widths[best]:.3g}, is at an end of "
            f"bandwidths={described(bandwidths)}: try "
            "a wider range.",
            stacklevel=2,
        )
    chosen = jnp.asarray(widths[best : best + 1], float)
    values = _log_densities(centred["samples"], centred["x_test"], chosen, batch_size)[:, 0]
    return ParzenEstimate(
        log_likelihood=Estimate(
            values, jnp.full_like(values, jnp.nan), num_dimensions=math.prod(shape)
        ),
        bandwidth=chosen[0],
        bandwidths=jnp.asarray(widths, float),
        validation=jnp.asarray(means, float),
    )


@eqx.filter_jit
def _log_densities(
    samples: Float[Array, "n d"],
    x: Float[Array, "m d"],
    bandwidths: Float[Array, " bandwidths"],
    block: int,
) -> Float[Array, "m bandwidths"]:
    """Return log p(x) at each bandwidth."""
    squared_norms = jnp.sum(samples**2, axis=1)

    def one(x: Array) -> Array:
        inner = jnp.matmul(samples, x, precision="highest")
        squares = jnp.maximum(jnp.sum(x**2) + squared_norms - 2 * inner, 0)

        # log p(x) = log mean_i exp(-|x - s_i|^2 / 2h^2) - (d / 2) log(2 pi h^2)
        def log_density(h: Array) -> Array:
            log_mean = jax.nn.logmeanexp(-0.5 * squares / h**2)
            return log_mean - 0.5 * samples.shape[1] * jnp.log(2 * jnp.pi * h**2)

        return jax.lax.map(log_density, bandwidths)

    return map_in_blocks(one, (x,), block)
