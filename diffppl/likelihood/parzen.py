"""Parzen windows: a density from samples alone, for comparisons with older papers.

    p(x) = (1/n) sum_i N(x; s_i, h^2 I)

over n samples s_i of a model, with the bandwidth h that suits a validation set best. In many
dimensions it says little of the model: with 10,000 samples it is far below the true log p, ranks
models wrongly, and may prefer samples that lie between the data to the data themselves (Theis, van
den Oord and Bethge 2016, section 3.2). Report the ELBO first. As a yardstick, put training
data in the place of the samples: a perfect model scores the same, and yet not the highest.

References:
    Parzen 1962; Breuleux, Bengio and Vincent 2011; Goodfellow et al. 2014, section 5 (the
    protocol); Sohl-Dickstein et al. 2015, table 2 (in bits).
"""

import math
import warnings
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..batching import map_in_blocks
from ..checks.arguments import check_size, described
from ..checks.arrays import as_finite
from .estimate import LogEstimate

BANDWIDTHS = tuple(np.logspace(-1, 0, 10).tolist())


@final
class ParzenEstimate(eqx.Module):
    """What `parzen` returns.

    Attributes:
        log_likelihood: of the test data, in nats. What other samples would have changed cannot be
            told, so `per_example_error` is NaN; `standard_error` is the spread over test data.
        bandwidth: the one chosen.
        bandwidths: those tried.
        validation: mean log-density of the validation data with each of them, in nats.
    """

    log_likelihood: LogEstimate
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
    samples: Any,
    validation: Any,
    x_test: Any,
    *,
    bandwidths: Any = BANDWIDTHS,
    batch_size: int = 100,
) -> ParzenEstimate:
    """The log-density of test data under windows of one width around samples.

    The published protocol: 10,000 samples, pixel values in [0, 1], ten bandwidths from 0.1 to 1,
    the one chosen that up to 1,000 held-out training images prefer, and 10,000 test images.

    Args:
        samples: of a model, shape `(n, *event_shape)`.
        validation, x_test: data in the same units, to choose the bandwidth and to report.
        bandwidths: to choose from, in the units of the data; ten from 0.1 to 1 by default.
        batch_size: test data at a time; each takes memory for `n` distances.

    Returns:
        A `ParzenEstimate`, in nats per event.

    Raises:
        ValueError: shapes that do not fit together, no data, values that are not finite, or
            bandwidths that are not positive.

    Warns:
        UserWarning: the best bandwidth is the smallest or the largest of several.

    Example:
        >>> samples = dp.sample(key, model, (10_000,)) / 256
        >>> dp.likelihood.parzen(samples, held_out / 256, test / 256)
        ParzenEstimate(220.100 ± 1.900 nats, bandwidth=0.215)
    """
    batch_size = check_size("batch_size", batch_size)
    names = {"samples": samples, "validation": validation, "x_test": x_test}
    arrays = {name: _as_events(name, x) for name, x in names.items()}
    shape = arrays["samples"].shape[1:]
    for name, x in arrays.items():
        if x.shape[1:] != shape:
            raise ValueError(
                f"{name} has events of shape {x.shape[1:]}, and samples of shape {shape}; they "
                "must agree."
            )
    widths = np.asarray(as_finite("bandwidths", bandwidths), np.float64)
    if widths.ndim != 1 or widths.size == 0 or not np.all(widths > 0):
        raise ValueError(f"bandwidths={described(bandwidths)} must be a list of positive numbers.")
    # Squared distances come from |x|^2 + |s|^2 - 2 x.s, which loses digits far from the origin.
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
        log_likelihood=LogEstimate(values, jnp.full_like(values, jnp.nan)),
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
    """log p(x) with each bandwidth."""
    n, d = samples.shape
    lengths = jnp.sum(samples**2, axis=1)

    def one(x: Array) -> Array:
        inner = jnp.matmul(samples, x, precision="highest")
        squares = jnp.maximum(jnp.sum(x**2) + lengths - 2 * inner, 0)

        def at(h: Array) -> Array:
            normaliser = math.log(n) + 0.5 * d * jnp.log(2 * jnp.pi * h**2)
            return jax.nn.logsumexp(-0.5 * squares / h**2) - normaliser

        return jax.lax.map(at, bandwidths)

    return map_in_blocks(one, (x,), block)


def _as_events(name: str, x: Any) -> Float[np.ndarray, "n ..."]:
    """Finite numbers with a leading axis, in double precision for the centring."""
    values = np.asarray(as_finite(name, x), np.float64)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"{name} is empty: it has shape {values.shape}.")
    return values
