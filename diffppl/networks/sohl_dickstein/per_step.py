"""The paper's small networks: features shared by all steps, and a linear readout for each step.

    f(x_t, t) = (R + R_t) phi(x_t) + r + r_t

Each step has its own weights, R + R_t, which parametrise any linear readout per step; R and r are
shared, and trained on all steps. Readouts are initialised at zero, and so is the raw output. The
features of `RBF`, for two-dimensional data, are radial basis functions,

    phi_i(x) = exp(-|x - c_i|^2 / (2 w_i^2)) / sum_j exp(-|x - c_j|^2 / (2 w_j^2)),

and those of `SigmoidMLP`, for bits, the last of several layers h_l = sigmoid(W_l h_{l-1} + b_l).

References:
    Sohl-Dickstein et al. 2015, sections D.1.1 (16 units, T = 40) and D.1.2 (three layers of 50,
    T = 2000).
    Glorot and Bengio 2010 (initial weights, four times larger for sigmoid units).
"""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import Time, check_key, check_size
from ..layers.layout import DenseLayout


@final
class PerStepReadout(eqx.Module):
    """A readout linear in h, with weights for each t in 1..`num_steps`, initialised at zero."""

    weight: Float[Array, "outputs size"]
    bias: Float[Array, " outputs"]
    step_weights: Float[Array, "num_steps outputs size"]
    step_biases: Float[Array, "num_steps outputs"]

    def __init__(self, num_steps: int, size: int, outputs: int) -> None:
        num_steps = check_size("num_steps", num_steps)
        self.weight = jnp.zeros((outputs, size))
        self.bias = jnp.zeros(outputs)
        self.step_weights = jnp.zeros((num_steps, outputs, size))
        self.step_biases = jnp.zeros((num_steps, outputs))

    def __call__(self, h: Float[Array, " size"], t: Time) -> Float[Array, " outputs"]:
        """Return the output at step t, in 1..`num_steps`."""
        # t counts from 1, rows from 0.
        weight = self.weight + self.step_weights[t - 1]
        return weight @ h + self.bias + self.step_biases[t - 1]


class AbstractPerStep(eqx.Module):
    """A network with features that are shared by all steps, and a readout for each."""

    layout: eqx.AbstractVar[DenseLayout]
    readout: eqx.AbstractVar[PerStepReadout]

    @abc.abstractmethod
    def activations(self, x_t: Array) -> Float[Array, " size"]:
        """Return the features of one event."""

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event; the context is ignored."""
        del context
        return self.layout.from_vector(self.readout(self.activations(x_t), t))


@final
class RBF(AbstractPerStep):
    """A normalised radial basis network with a readout for each step.

    Centers are initialised as draws from N(0, I), which covers x_t at every t, and widths so that
    several units respond to each x_t.

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

    layout: DenseLayout
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
        self.layout = DenseLayout(event_shape, output_shape)
        num_units, size = check_size("num_units", num_units), self.layout.inputs
        self.centers = jax.random.normal(check_key(key), (num_units, size))
        # w_i^2 grows with the square root of the dimension, as the spread of |x - c_i|^2 does.
        self.log_widths = jnp.full(num_units, math.log(0.5 * size**0.25))
        self.readout = PerStepReadout(num_steps, num_units, self.layout.outputs)

    def activations(self, x_t: Array) -> Float[Array, " num_units"]:
        """Return the phi_i of one event: non-negative, summing to 1."""
        distances = jnp.sum((self.layout.to_vector(x_t) - self.centers) ** 2, axis=1)
        # A softmax of the exponents: their sum does not underflow far from all centers.
        return jax.nn.softmax(-0.5 * distances * jnp.exp(-2 * self.log_widths))


@final
class SigmoidMLP(AbstractPerStep):
    """Sigmoid layers shared by all steps, with a readout for each.

    The initial probability of each bit is 1/2.

    Args:
        event_shape: shape of one datum.
        num_steps: T, of the process.
        width: units of each hidden layer.
        depth: number of hidden layers.
        key: for the weights of the hidden layers.
        output_shape: shape of the raw output, by default `event_shape`.

    Example:
        >>> network = dp.networks.SigmoidMLP(
        ...     event_shape=(20,), num_steps=2000, key=jax.random.key(0)
        ... )
    """

    layout: DenseLayout
    hidden: tuple[eqx.nn.Linear, ...]
    readout: PerStepReadout

    def __init__(
        self,
        event_shape: tuple[int, ...],
        num_steps: int,
        width: int = 50,
        depth: int = 3,
        *,
        key: Array,
        output_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.layout = DenseLayout(event_shape, output_shape)
        width, depth = check_size("width", width), check_size("depth", depth)
        sizes = [self.layout.inputs] + [width] * depth
        keys = jax.random.split(check_key(key), depth)
        self.hidden = tuple(
            _sigmoid_layer(sizes[i], sizes[i + 1], key=keys[i]) for i in range(depth)
        )
        self.readout = PerStepReadout(num_steps, width, self.layout.outputs)

    def activations(self, x_t: Array) -> Float[Array, " width"]:
        """Return the activations of the last hidden layer for one event."""
        h = self.layout.to_vector(x_t)
        for layer in self.hidden:
            h = jax.nn.sigmoid(layer(h))
        return h


def _sigmoid_layer(in_size: int, out_size: int, *, key: Array) -> eqx.nn.Linear:
    """Create a layer with the initial weights of Glorot and Bengio 2010 for sigmoid units."""
    # The slope of a sigmoid is a quarter of that of tanh: with smaller weights three layers
    # transmit almost nothing of the input, and training takes many times longer.
    bound = 4 * math.sqrt(6 / (in_size + out_size))
    weight = jax.random.uniform(key, (out_size, in_size), minval=-bound, maxval=bound)
    layer = eqx.nn.Linear(in_size, out_size, key=key)
    return eqx.tree_at(lambda n: (n.weight, n.bias), layer, (weight, jnp.zeros(out_size)))
