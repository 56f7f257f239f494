"""The paper's network for bits: sigmoid layers, with a readout for each step.

    h_l = sigmoid(W_l h_{l-1} + b_l),    f(x_t, t) = readout_t(h_depth)

The hidden layers are shared by all steps and do not depend on the time.

References:
    Sohl-Dickstein et al. 2015, section D.1.2 (three layers of 50, T = 2000).
    Glorot and Bengio 2010 (initial weights, four times larger for sigmoid units).
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
class SigmoidMLP(eqx.Module):
    """Sigmoid layers shared by all steps, with a readout for each.

    Readouts are initialised at zero, and so is the raw output: the initial probability of each bit
    is 1/2.

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
        key = check_key(key)
        event_shape = check_shape("event_shape", event_shape)
        size = input_size(event_shape)
        width, depth = check_size("width", width), check_size("depth", depth)
        sizes = [size] + [width] * depth
        keys = jax.random.split(key, depth)
        self.hidden = tuple(
            _sigmoid_layer(sizes[i], sizes[i + 1], key=keys[i]) for i in range(depth)
        )
        output_shape = event_shape if output_shape is None else output_shape
        self.readout = PerStepReadout(num_steps, width, output_shape)

    def activations(self, x_t: Array) -> Float[Array, " width"]:
        """Return the activations of the last hidden layer for one event."""
        h = flatten(x_t)
        for layer in self.hidden:
            h = jax.nn.sigmoid(layer(h))
        return h

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """Return the raw output for one event; the context is ignored."""
        del context
        return self.readout(self.activations(x_t), t)


def _sigmoid_layer(in_size: int, out_size: int, *, key: Array) -> eqx.nn.Linear:
    """Create a layer with the initial weights of Glorot and Bengio 2010 for sigmoid units."""
    # The slope of a sigmoid is a quarter of that of tanh: with smaller weights three layers
    # transmit almost nothing of the input, and training takes many times longer.
    bound = 4 * math.sqrt(6 / (in_size + out_size))
    weight = jax.random.uniform(key, (out_size, in_size), minval=-bound, maxval=bound)
    layer = eqx.nn.Linear(in_size, out_size, key=key)
    return eqx.tree_at(lambda n: (n.weight, n.bias), layer, (weight, jnp.zeros(out_size)))
