"""A dense network with time and context modulation of every hidden layer.

With c = activation(A features(t) + B context),

    h_1 = W_0 x    (or W_0 of the Fourier features of x)
    h_{l+1} = h_l + W_l activation(h_l * (1 + scale_l(c)) + shift_l(c)),    l = 1..depth-1
    output = W activation(h_depth * (1 + scale_depth(c)) + shift_depth(c)).

Scales, shifts and W are initialised at zero, and so is the output: with `Velocity` the initial
reverse kernel has the mean of the forward kernel.

References:
    Perez et al. 2018 (scale and shift); He et al. 2016 (pre-activation residual layers).
"""

import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks.arguments import check_callable, check_key, check_shape, check_size
from .layers.contexts import ContextEmbedding, context_embedding, embed
from .layers.fourier import FourierFeatures
from .layers.inputs import flatten, input_size
from .layers.time import sinusoidal

NUM_FEATURES = 64  # of the time


@final
class MLP(eqx.Module):
    """A dense network for any kind of event, a good default for up to some hundred coordinates.

    Args:
        event_shape: shape of one datum.
        width: units of each hidden layer.
        depth: number of hidden layers.
        key: for the initial weights.
        output_shape: shape of the raw output, by default `event_shape`. A learned variance needs
            `(2, *event_shape)`; categories need `(*event_shape, K)`.
        context_shape: shape of the context of one event, if it is numeric.
        num_classes: number of classes, if the context is a label, of shape (). A label of -1 means
            no class.
        num_categories: for categories, the number of states of the chain, which are one-hot
            encoded: K, or K + 1 with an absorbing base.
        activation: elementwise, between layers.
        fourier_features: number of directions whose sines and cosines are added to the input; 0
            for none. For a few coordinates with fine detail, 64 can help more than a larger width
            or depth.
        fourier_scale: standard deviation of their initial frequencies, radians per unit of x_t. The
            finest detail, in standard deviations of the data, is about the inverse.

    Raises:
        ValueError: an invalid shape or size.

    Example:
        >>> network = dp.networks.MLP(event_shape=(2,), width=128, depth=3, key=jax.random.key(0))
        >>> network(jnp.zeros(2), 1, None)
        Array([0., 0.], dtype=float32)
    """

    fourier: FourierFeatures | None
    first: eqx.nn.Linear
    hidden: tuple[eqx.nn.Linear, ...]
    modulations: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    time: eqx.nn.Linear
    context: ContextEmbedding | None
    activation: Callable[[Array], Array] = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)
    num_categories: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        *,
        key: Array,
        output_shape: tuple[int, ...] | None = None,
        context_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        num_categories: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
        fourier_features: int = 0,
        fourier_scale: float = 4.0,
    ) -> None:
        key = check_key(key)
        event_shape = check_shape("event_shape", event_shape)
        output_shape = event_shape if output_shape is None else output_shape
        if num_categories is not None:
            num_categories = check_size("num_categories", num_categories, least=2)
        width, depth = check_size("width", width), check_size("depth", depth)
        fourier_features = check_size("fourier_features", fourier_features, least=0)
        *layer_keys, key_fourier = jax.random.split(key, 2 * depth + 4)
        keys = iter(layer_keys)
        linear = eqx.nn.Linear
        size, self.fourier = input_size(event_shape, num_categories), None
        if fourier_features:
            self.fourier = FourierFeatures(size, fourier_features, fourier_scale, key=key_fourier)
        self.first = linear(size + 2 * fourier_features, width, key=next(keys))
        self.hidden = tuple(linear(width, width, key=next(keys)) for _ in range(depth - 1))
        # Zero modulations: at initialisation the network depends on neither t nor the context.
        self.modulations = tuple(
            zeroed(linear(width, 2 * width, key=next(keys))) for _ in range(depth)
        )
        self.output_shape = check_shape("output_shape", output_shape)
        self.last = zeroed(linear(width, math.prod(self.output_shape), key=next(keys)))
        self.time = linear(NUM_FEATURES, width, key=next(keys))
        self.context = context_embedding(width, context_shape, num_classes, key=next(keys))
        self.activation = check_callable("activation", activation, "(x)")
        self.num_categories = num_categories

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """Return the raw output for one event."""
        # Without a context this depends on t alone, and `vmap` computes it once per batch.
        condition = self.time(sinusoidal(t, NUM_FEATURES))
        vector = embed(self.context, context, condition.dtype)
        condition = condition if vector is None else condition + vector
        # Time features have the default float type, weights possibly a shorter one.
        condition = self.activation(condition).astype(self.first.weight.dtype)

        x = flatten(x_t, self.num_categories)
        h = self.first(x if self.fourier is None else self.fourier(x))
        for modulation, layer in zip(self.modulations[:-1], self.hidden, strict=True):
            h = h + layer(self._activate(h, modulation(condition)))
        output = self.last(self._activate(h, self.modulations[-1](condition)))
        return output.reshape(self.output_shape)

    def _activate(self, h: Array, modulation: Array) -> Float[Array, " width"]:
        """Return activation(h * (1 + scale) + shift)."""
        scale, shift = jnp.split(modulation, 2)
        return self.activation(h * (1 + scale) + shift)


def zeroed(layer: eqx.nn.Linear) -> eqx.nn.Linear:
    """Return the layer with weights and biases of zero."""
    return jax.tree.map(jnp.zeros_like, layer)
