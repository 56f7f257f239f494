"""The paper's network for two-dimensional data: radial basis functions, a readout for each step.

    phi_i(x) = exp(-|x - c_i|^2 / (2 w_i^2)) / sum_j exp(-|x - c_j|^2 / (2 w_j^2))
    f(x_t, t) = readout_t(phi(x_t))

The centers c and widths w are shared by all steps; the readouts are not.

References:
    Sohl-Dickstein et al. 2015, section D.1.1 (16 units, T = 40).
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...checks.arguments import check_key, check_shape, check_size
from ..layers.inputs import flatten, input_size
from .per_step import PerStepReadout


@final
class RBF(eqx.Module):
    """A normalised radial basis network with a readout for each step.

    Readouts are initialised at zero, and so is the raw output; centers are initialised as draws
    from N(0, I), which covers x_t at every t, and widths so that several units respond to each x_t.

    Args:
        event_shape: shape of one datum.
        num_steps: T, of the process.
        num_units: radial basis functions.
        key: for the centers.
        output_shape: shape of the raw output, by default `event_shape`. A learned variance and
            the paper's own heads, `KernelMoments()`, need `(2, *event_shape)`.

    Example:
        >>> network = dp.networks.RBF(
        ...     event_shape=(2,), num_steps=40, key=jax.random.key(0), output_shape=(2, 2)
        ... )
    """

    centers: Float[Array, "num_units features"]
    log_widths: Float[Array, " num_units"]
    readout: PerStepReadout

    def __init__(
        self,
        event_shape: tuple[int, ...],
        num_steps: int,
        num_units: int = 16,
        *,
        key: Array,
        output_shape: tuple[int, ...] | None = None,
    ) -> None:
        key = check_key(key)
        event_shape = check_shape("event_shape", event_shape)
        size = input_size(event_shape)
        num_units = check_size("num_units", num_units)
        self.centers = jax.random.normal(key, (num_units, size))
        # w_i^2 grows with the square root of the dimension, as the spread of |x - c_i|^2 does.
        self.log_widths = jnp.full(num_units, math.log(0.5 * size**0.25))
        output_shape = event_shape if output_shape is None else output_shape
        self.readout = PerStepReadout(num_steps, num_units, output_shape)

    def activations(self, x_t: Array) -> Float[Array, " num_units"]:
        """Return the phi_i of one event: non-negative, summing to 1."""
        distances = jnp.sum((flatten(x_t) - self.centers) ** 2, axis=1)
        # A softmax of the exponents: their sum does not underflow far from all centers.
        return jax.nn.softmax(-0.5 * distances * jnp.exp(-2 * self.log_widths))

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """Return the raw output for one event; the context is ignored."""
        del context
        return self.readout(self.activations(x_t), t)
