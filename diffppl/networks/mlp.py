"""A dense network with time and context modulation of every hidden layer.

With the vector c of time and context of `layers.embedding`, one layer deep,

    h_1 = W_0 x    (or W_0 features(x))
    h_{l+1} = h_l + W_l activation(h_l * (1 + scale_l(c)) + shift_l(c)),    l = 1..depth-1
    output = W activation(h_depth * (1 + scale_depth(c)) + shift_depth(c)).

Scales, shifts and W are initialised at zero, and so is the output: with `Velocity` the initial
reverse kernel has the mean of the forward kernel.

Fourier features let a smooth network represent fine detail in few coordinates:

    features(x) = (x, sin(F x), cos(F x)),    F initially with entries from N(0, scale^2).

A dense network learns low-frequency functions of its input first, and those that vary over a
length l only once one of its features does; with F of scale 1 / l some do from the start. For data
close to a curve or a surface, low noise levels require such functions.

References:
    Perez et al. 2018 (scale and shift); He et al. 2016 (pre-activation residual layers);
    Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low
    Dimensional Domains"; there F is fixed, here it is trained with the rest.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks.arguments import Time, check_float, check_key, check_size
from .layers.embedding import Embedding
from .layers.layout import DenseLayout


@final
class FourierFeatures(eqx.Module):
    """A vector x with sines and cosines of `num` projections of it: `size + 2 num` features.

    Args:
        size: length of x.
        num: projections.
        scale: standard deviation of the frequencies, radians per unit of x.
        key: for the frequencies.
    """

    frequencies: Float[Array, "num size"]

    def __init__(self, size: int, num: int, scale: float, *, key: Array) -> None:
        # Named as the argument of the networks that contain this layer.
        scale = check_float("fourier_scale", scale, 0.0)
        self.frequencies = scale * jax.random.normal(key, (num, size))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " features"]:
        """Return the features of one vector."""
        angles = self.frequencies @ x
        return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)])


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

    layout: DenseLayout
    fourier: FourierFeatures | None
    first: eqx.nn.Linear
    hidden: tuple[eqx.nn.Linear, ...]
    modulations: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    embedding: Embedding

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
        self.layout = DenseLayout(event_shape, output_shape, num_categories)
        width, depth = check_size("width", width), check_size("depth", depth)
        fourier_features = check_size("fourier_features", fourier_features, least=0)
        *layer_keys, key_time, key_context, key_fourier = jax.random.split(key, 2 * depth + 4)
        keys = iter(layer_keys)
        linear = eqx.nn.Linear
        size, self.fourier = self.layout.inputs, None
        if fourier_features:
            self.fourier = FourierFeatures(size, fourier_features, fourier_scale, key=key_fourier)
        self.first = linear(size + 2 * fourier_features, width, key=next(keys))
        self.hidden = tuple(linear(width, width, key=next(keys)) for _ in range(depth - 1))
        # Zero modulations: at initialisation the network depends on neither t nor the context.
        self.modulations = tuple(
            zeroed(linear(width, 2 * width, key=next(keys))) for _ in range(depth)
        )
        self.last = zeroed(linear(width, self.layout.outputs, key=next(keys)))
        self.embedding = Embedding(
            width,
            keys=(key_time, key_context),
            context_shape=context_shape,
            num_classes=num_classes,
            activation=activation,
        )

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event."""
        condition = self.embedding(t, context)
        x = self.layout.to_vector(x_t)
        h = self.first(x if self.fourier is None else self.fourier(x))
        for modulation, layer in zip(self.modulations[:-1], self.hidden, strict=True):
            h = h + layer(self._activate(h, modulation(condition)))
        return self.layout.from_vector(
            self.last(self._activate(h, self.modulations[-1](condition)))
        )

    def _activate(self, h: Array, modulation: Array) -> Float[Array, " width"]:
        """Return activation(h * (1 + scale) + shift)."""
        scale, shift = jnp.split(modulation, 2)
        return self.embedding.activation(h * (1 + scale) + shift)


def zeroed(layer: eqx.nn.Linear) -> eqx.nn.Linear:
    """Return the layer with weights and biases of zero."""
    return jax.tree.map(jnp.zeros_like, layer)
