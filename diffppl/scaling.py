"""The affine map between the user's units and the unit-variance coordinates of the chain."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .values import as_array, as_finite, at_fault


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

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        locs, scales = as_finite("loc", loc), as_finite("scale", scale)
        self.loc, self.scale = as_array("loc", locs, float), as_array("scale", scales, float)
        if not isinstance(scales, Tracer):
            bad = np.asarray(scales, self.scale.dtype) == 0
            if bad.any():
                raise ValueError(f"scale must not be zero: {at_fault(bad, scales)}.")

    @classmethod
    def from_data(cls, data: ArrayLike, *, per_coordinate: bool = False) -> "Scaling":
        """Centre the data and bring their average second moment to 1.

        One number each for the whole data set, as in the paper (section 3), or one per
        coordinate. A coordinate that never varies keeps scale 1.
        """
        values = np.asarray(as_finite("data", data), dtype=np.float64)
        axis = 0 if per_coordinate else None
        scale = values.std(axis=axis)
        return cls(values.mean(axis=axis), np.where(scale > 0, scale, 1.0))

    def to_model(self, x: Array) -> Float[Array, "..."]:
        """From the user's units to the chain's."""
        return (x - self.loc) / self.scale

    def to_user(self, x: Array) -> Float[Array, "..."]:
        """From the chain's units to the user's."""
        return self.loc + self.scale * x

    def log_abs_det(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """log|det dx_user/dx_model| of one event, in nats."""
        return jnp.sum(jnp.broadcast_to(jnp.log(jnp.abs(self.scale)), event_shape))
