"""Affine map between the user's units and the unit-variance coordinates of the chain.

*From data.* The chain requires a second moment of 1, and its lowest noise level bounds the
resolution of a network, so each column of a table has its own scale, which outliers must not
determine. `Scaling.from_data` uses the mean and standard deviation of the values within

    [q_low - 3 r, q_high + 3 r],    r = q_high - q_low,

with the 2.5 % and 97.5 % quantiles. The interval contains all values of normal data (its ends are
at 13.7 standard deviations), two modes, counts or an exponential tail, and none of the outliers if
1 % of the numbers are a thousand times too large. If more than half of a column is one value, the
quantiles are those of the other values. Images and other events of several axes have one location
and one scale, and whole events are excluded, by their mean and mean square, never single pixels.

*Precision.* NumPy data are centred in double precision: 1.6e9 +- 10 keeps all digits. Outputs of a
model in the user's units have JAX's default precision; float32 has a spacing of 128 at 1.6e9.
"""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float
from numpyro.distributions.transforms import AffineTransform

from ..checks.arrays import as_array, as_finite, describe_invalid

QUANTILES, FENCE_FACTOR = (0.025, 0.975), 3.0  # see the module docstring
MAX_NUMBERS = 2**26  # numbers used of large data: half a gigabyte in double precision
ROUNDING = 2  # a spread below these units in the last place of the largest value counts as zero


@final
class Scaling(eqx.Module):
    """Affine map x_user = `loc` + `scale` * x_model, per coordinate.

    A model applies it to its outputs: samples, programs and log-densities are in the user's units,
    and log-densities include the Jacobian term log|scale|.

    Args:
        loc, scale: numbers or arrays that broadcast against the event.

    Raises:
        ValueError: NaN or infinite numbers, or a scale of zero.
    """

    loc: Float[Array, "..."]
    scale: Float[Array, "..."]
    rest: Float[Array, "..."]  # rounding error of loc

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        locs, scales = as_finite("loc", loc), as_finite("scale", scale)
        self.loc, self.scale = as_array("loc", locs, float), as_array("scale", scales, float)
        self.rest = jnp.zeros_like(self.loc)
        if not isinstance(scales, Tracer):
            bad = np.asarray(scales, self.scale.dtype) == 0
            if bad.any():
                raise ValueError(f"scale must not be zero: {describe_invalid(bad, scales)}.")
        if isinstance(locs, np.ndarray):
            rest = locs.astype(np.float64) - np.asarray(self.loc, np.float64)
            self.rest = jnp.asarray(rest, dtype=float)

    @classmethod
    def from_data(cls, data: ArrayLike, *, per_coordinate: bool | None = None) -> "Scaling":
        """Return the scaling to mean 0 and second moment 1 of the data, without outliers.

        See the module docstring. Coordinates that are constant up to rounding have scale 1.

        Args:
            data: shape `(n, *event_shape)`.
            per_coordinate: use a location and a scale for each coordinate, or one of each for all.
                The default is True for vectors, such as rows of a table, and False for events with
                several axes, such as images. `fit` does the same.

        Example:
            >>> dp.Scaling.from_data(table)     # of shape (n, d): d locations and scales
        """
        values = np.asarray(as_finite("data", data))
        if values.size == 0 or values.ndim == 0:
            raise ValueError(f"data must have rows; its shape is {values.shape}.")
        loc, spread = spread_of(values, per_coordinate=per_coordinate)
        return cls(loc, np.where(spread > 0, spread, 1.0))

    def to_model(self, x: Array | np.ndarray) -> Float[Array, "..."]:
        """Convert from the user's units to the chain's; in double precision if `x` is in NumPy."""
        traced = any(isinstance(leaf, Tracer) for leaf in (self.loc, self.scale, self.rest))
        if isinstance(x, np.ndarray) and not traced:
            loc = np.asarray(self.loc, np.float64) + np.asarray(self.rest, np.float64)
            values = (x.astype(np.float64) - loc) / np.asarray(self.scale, np.float64)
            return jnp.asarray(values, dtype=float)
        return (jnp.asarray(x) - self.loc - self.rest) / self.scale

    def to_user(self, x: Array) -> Float[Array, "..."]:
        """Convert from the chain's units to the user's, in JAX's default precision."""
        return self.loc + (self.rest + self.scale * x)

    def transforms(self, event_shape: tuple[int, ...]) -> list[AffineTransform]:
        """Return `to_user` of one event as NumPyro transforms, whose parameters have its shape."""
        loc, scale, rest = (
            jnp.broadcast_to(x, event_shape) for x in (self.loc, self.scale, self.rest)
        )
        return [AffineTransform(rest, scale), AffineTransform(loc, jnp.ones(event_shape))]

    def log_abs_det(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """Return log|det dx_user/dx_model| of one event, in nats."""
        return jnp.sum(jnp.broadcast_to(jnp.log(jnp.abs(self.scale)), event_shape))


def spread_of(
    values: np.ndarray, *, per_coordinate: bool | None = None
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Return mean and standard deviation without outliers, in double precision.

    See `Scaling.from_data`. The standard deviation of constant values is exactly 0.
    """
    eps = float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    values = values[:: max(1, values.size // MAX_NUMBERS)]
    rows = np.asarray(values, np.float64).reshape(values.shape[0], -1)
    if values.ndim == 2 if per_coordinate is None else per_coordinate:
        loc, spread = _of_columns(rows, eps)
        return loc.reshape(values.shape[1:]), spread.reshape(values.shape[1:])
    return _of_all(rows, eps)


def _of_columns(rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column."""
    start, rounding = rows[0], ROUNDING * eps * np.abs(rows).max(axis=0)
    change = rows - start  # exactly 0 in a constant column
    inside = _inside(change, rounding)
    spread = change.std(axis=0, where=inside)
    loc = start + change.mean(axis=0, where=inside)
    return loc, np.where(spread > rounding, spread, 0.0)


def _of_all(rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return one mean and one standard deviation, without rows of outlying mean or mean square."""
    rounding = ROUNDING * eps * np.abs(rows).max()
    means = rows.mean(axis=1)
    inside = _inside(means[:, None], rounding)[:, 0]
    squares = ((rows - means[inside].mean()) ** 2).mean(axis=1)
    both = inside & _inside(squares[:, None], rounding**2)[:, 0]
    values = rows[both if both.any() else inside]
    spread = values.std()
    return np.asarray(values.mean()), np.where(spread > rounding, spread, 0.0)


def _inside(values: np.ndarray, rounding: np.ndarray | float) -> Bool[np.ndarray, "n d"]:
    """Return which values of each column are not outliers: see the module docstring."""
    low, middle, high = np.quantile(values, [QUANTILES[0], 0.5, QUANTILES[1]], axis=0)
    # Columns that are mostly one value, the median: quantiles of the others and one copy of it.
    for j in np.flatnonzero(np.mean(values == middle, axis=0) > 0.5):
        others = values[values[:, j] != middle[j], j]
        if others.size:
            low[j], high[j] = np.quantile(np.append(others, middle[j]), QUANTILES)
    margin = FENCE_FACTOR * (high - low)
    within = (values >= low - margin) & (values <= high + margin)
    return within | (values == middle) | (high - low <= rounding)
