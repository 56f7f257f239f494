"""The affine map between the user's units and the unit-variance coordinates of the chain.

*From data.* The chain expects a second moment of 1, and its lowest noise level bounds what a
network can resolve, so that a column of a table needs a scale of its own, and so does its bulk
beside a few wild values. `Scaling.from_data` takes mean and standard deviation of the values within

    [q_low - 3 r, q_high + 3 r],    r = q_high - q_low,

with the quantiles of 2.5 % and 97.5 %: all of them for normal data (the fences are at 13.7 standard
deviations), two modes, counts or an exponential tail, and none of the outliers where 1 % of the
numbers are a thousand times too large. Of a column that is mostly one value the quantiles are those
of the others. For images and other events of several axes, which have one location and one scale,
it is whole events that are left out, by their mean and mean square, and never single pixels.

*Precision.* NumPy's data are centred in double precision on their way in: 1.6e9 +- 10 keeps all its
digits. What leaves a model in the user's units is in JAX's default precision; float32 resolves 128
at 1.6e9.
"""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float
from numpyro.distributions.transforms import AffineTransform

from ..checks.arrays import as_array, as_finite, at_fault

QUANTILES, REACH = (0.025, 0.975), 3.0
MAX_NUMBERS = 2**26  # that are looked at: half a gigabyte in double precision
ROUNDING = 2  # units in the last place of a column's largest value: less spread is none


@final
class Scaling(eqx.Module):
    """x_user = `loc` + `scale` * x_model, coordinate by coordinate.

    A model stores one and undoes it on the way out: samples, programs and log-densities are in
    the user's units, with log|scale| counted.

    Args:
        loc, scale: numbers or arrays that broadcast against the event.

    Raises:
        ValueError: NaN or infinite numbers, or a scale of zero.
    """

    loc: Float[Array, "..."]
    scale: Float[Array, "..."]
    rest: Float[Array, "..."]  # of loc, what its precision rounds off

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        locs, scales = as_finite("loc", loc), as_finite("scale", scale)
        self.loc, self.scale = as_array("loc", locs, float), as_array("scale", scales, float)
        self.rest = jnp.zeros_like(self.loc)
        if not isinstance(scales, Tracer):
            bad = np.asarray(scales, self.scale.dtype) == 0
            if bad.any():
                raise ValueError(f"scale must not be zero: {at_fault(bad, scales)}.")
        if isinstance(locs, np.ndarray):
            rest = locs.astype(np.float64) - np.asarray(self.loc, np.float64)
            self.rest = jnp.asarray(rest, dtype=float)

    @classmethod
    def from_data(cls, data: ArrayLike, *, per_coordinate: bool | None = None) -> "Scaling":
        """Centre the data and bring their second moment to 1; outliers do not count.

        See the module's docstring. What never varies, but for rounding, keeps scale 1.

        Args:
            data: shape `(n, *event_shape)`.
            per_coordinate: a location and a scale for each coordinate, or one of each for all. By
                default each has its own if events are vectors, as the rows of a table are, and not
                if they have several axes, as images have. `fit` does the same.

        Example:
            >>> dp.Scaling.from_data(table)     # of shape (n, d): d locations and scales
        """
        values = np.asarray(as_finite("data", data))
        if values.size == 0 or values.ndim == 0:
            raise ValueError(f"data must have rows; its shape is {values.shape}.")
        loc, spread = spread_of(values, per_coordinate=per_coordinate)
        return cls(loc, np.where(spread > 0, spread, 1.0))

    def to_model(self, x: Array | np.ndarray) -> Float[Array, "..."]:
        """From the user's units to the chain's; in double precision if `x` is a NumPy array."""
        traced = any(isinstance(leaf, Tracer) for leaf in (self.loc, self.scale, self.rest))
        if isinstance(x, np.ndarray) and not traced:
            loc = np.asarray(self.loc, np.float64) + np.asarray(self.rest, np.float64)
            values = (x.astype(np.float64) - loc) / np.asarray(self.scale, np.float64)
            return jnp.asarray(values, dtype=float)
        return (jnp.asarray(x) - self.loc - self.rest) / self.scale

    def to_user(self, x: Array) -> Float[Array, "..."]:
        """From the chain's units to the user's, in JAX's default precision."""
        return self.loc + (self.rest + self.scale * x)

    def transforms(self, event_shape: tuple[int, ...]) -> list[AffineTransform]:
        """`to_user` of one event for NumPyro, with parameters of the event's shape."""
        loc, scale, rest = (
            jnp.broadcast_to(x, event_shape) for x in (self.loc, self.scale, self.rest)
        )
        return [AffineTransform(rest, scale), AffineTransform(loc, jnp.ones(event_shape))]

    def log_abs_det(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """log|det dx_user/dx_model| of one event, in nats."""
        return jnp.sum(jnp.broadcast_to(jnp.log(jnp.abs(self.scale)), event_shape))


def spread_of(
    values: np.ndarray, *, per_coordinate: bool | None = None
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Mean and standard deviation but for outliers, in double precision: see `Scaling.from_data`.

    The standard deviation of what never varies is exactly 0.
    """
    eps = float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    values = values[:: max(1, values.size // MAX_NUMBERS)]
    rows = np.asarray(values, np.float64).reshape(values.shape[0], -1)
    if values.ndim == 2 if per_coordinate is None else per_coordinate:
        loc, spread = _of_columns(rows, eps)
        return loc.reshape(values.shape[1:]), spread.reshape(values.shape[1:])
    return _of_all(rows, eps)


def _of_columns(rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    start, rounding = rows[0], ROUNDING * eps * np.abs(rows).max(axis=0)
    change = rows - start  # exactly 0 in a constant column
    inside = _inside(change, rounding)
    spread = change.std(axis=0, where=inside)
    loc = start + change.mean(axis=0, where=inside)
    return loc, np.where(spread > rounding, spread, 0.0)


def _of_all(rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    rounding = ROUNDING * eps * np.abs(rows).max()
    means = rows.mean(axis=1)
    inside = _inside(means[:, None], rounding)[:, 0]
    squares = ((rows - means[inside].mean()) ** 2).mean(axis=1)
    both = inside & _inside(squares[:, None], rounding**2)[:, 0]
    values = rows[both if both.any() else inside]
    spread = values.std()
    return np.asarray(values.mean()), np.where(spread > rounding, spread, 0.0)


def _inside(values: np.ndarray, rounding: np.ndarray | float) -> Bool[np.ndarray, "n d"]:
    """What counts of each column: see the module's docstring."""
    low, middle, high = np.quantile(values, [QUANTILES[0], 0.5, QUANTILES[1]], axis=0)
    for j in np.flatnonzero(np.mean(values == middle, axis=0) > 0.5):
        others = values[values[:, j] != middle[j], j]
        if others.size:
            low[j], high[j] = np.quantile(np.append(others, middle[j]), QUANTILES)
    reach = REACH * (high - low)
    fenced = (values >= low - reach) & (values <= high + reach)
    return fenced | (values == middle) | (high - low <= rounding)
