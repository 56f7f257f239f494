"""The paper's network for images: multi-scale convolutions, dense layers and a temporal readout.

A multi-scale layer convolves the image at several sizes and sums the results:

    h' = softplus( sum_s upsample_s( convolve_s( pool_s(h) ) ) ),    s = 1, 2, 4, ...

Multi-scale layers and, in parallel, dense tanh layers over the whole image compute the features of
each pixel. Pointwise tanh layers map them to coefficients y_j for each number of raw output, and
the readout is sum_j g_j(t) y_j (see `bumps`). The layers do not depend on the time.

References:
    Sohl-Dickstein et al. 2015, section D.2, figure D.1; Barron et al. 2013 (several scales).
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import Time, check_instance, check_key, check_size
from ..layers.convolution import Convolution, check_resolutions, pool, upsample, zeroed
from ..layers.layout import ImageLayout
from ..layers.padding import AbstractPadding, Edge
from .bumps import BumpReadout


@final
class MultiScaleLayer(eqx.Module):
    """Convolutions at several sizes of an image, summed at full size, and a softplus.

    Args:
        inputs: input channels.
        outputs: output channels.
        num_axes: spatial axes.
        num_scales: number of sizes: full, 1/2, 1/4, ...
        key: for the weights.
        padding: values beyond the edges.
    """

    scales: tuple[Convolution, ...]

    def __init__(
        self,
        inputs: int,
        outputs: int,
        num_axes: int,
        num_scales: int,
        *,
        key: Array,
        padding: AbstractPadding,
    ) -> None:
        keys = jax.random.split(key, num_scales)
        self.scales = tuple(
            Convolution(inputs, outputs, num_axes, key=key, padding=padding) for key in keys
        )

    def __call__(self, h: Float[Array, "*space inputs"]) -> Float[Array, "*space outputs"]:
        """Return the output, at full size."""
        space = h.shape[:-1]
        total = self.scales[0](h)
        for scale, convolution in enumerate(self.scales[1:], start=1):
            small = convolution(pool(h, 2**scale))
            total = total + upsample(small, 2**scale, space)
        # The variance of a sum grows with the number of terms.
        return jax.nn.softplus(total / math.sqrt(len(self.scales)))


@final
class MultiScaleConv(eqx.Module):
    """The paper's network for images, signals and volumes.

    Either pathway can be omitted: the paper's network for MNIST has no convolutions
    (`conv_depth=0`), that for CIFAR-10 has both. Without the dense pathway, and with the default
    padding, a constant image gives a constant output. The paper does not give sizes; the defaults
    are of the order of those in its public code.

    Args:
        event_shape: shape of one datum.
        num_steps: T, of the process.
        conv_channels: channels of each multi-scale layer.
        conv_depth: number of multi-scale layers; 0 for none.
        num_scales: number of sizes in each: 1, 1/2, 1/4, ...
        dense_width: units of each dense layer.
        dense_depth: number of dense layers; 0 for none.
        dense_features: features per pixel from the dense layers.
        width: units of the pointwise layers, per pixel.
        depth: number of pointwise layers.
        num_bumps: of the temporal readout.
        key: for the initial weights. Those of the coefficients are initialised at zero, and so is
            the raw output.
        channel_axis: the channel axis of the event, such as 0 or -1; None if there is none, as in
            (28, 28).
        output_shape: shape of the raw output, by default `event_shape`. A learned variance and
            the paper's own heads, `KernelMoments()`, need `(2, *event_shape)`.
        num_categories: for categories, the number of states of the chain, which are one-hot
            encoded.
        padding: values beyond the edges of the image.

    Raises:
        ValueError: an invalid shape or size, or no pathway at all.

    Example:
        >>> network = dp.networks.MultiScaleConv(
        ...     event_shape=(28, 28), num_steps=1000, output_shape=(2, 28, 28), key=key
        ... )
    """

    layout: ImageLayout
    conv: tuple[MultiScaleLayer, ...]
    dense: tuple[eqx.nn.Linear, ...]
    pointwise: tuple[Convolution, ...]
    last: Convolution
    readout: BumpReadout

    def __init__(
        self,
        event_shape: tuple[int, ...],
        num_steps: int,
        conv_channels: int = 20,
        conv_depth: int = 4,
        num_scales: int = 3,
        *,
        key: Array,
        dense_width: int = 500,
        dense_depth: int = 2,
        dense_features: int = 2,
        width: int = 20,
        depth: int = 2,
        num_bumps: int = 10,
        channel_axis: int | None = None,
        output_shape: tuple[int, ...] | None = None,
        num_categories: int | None = None,
        padding: AbstractPadding = Edge(),
    ) -> None:
        key = check_key(key)
        self.layout = ImageLayout(event_shape, channel_axis, output_shape, num_categories)
        space, inputs = self.layout.space, self.layout.inputs
        num_axes, pixels = len(space), math.prod(space)
        conv_depth = check_size("conv_depth", conv_depth, least=0)
        dense_depth = check_size("dense_depth", dense_depth, least=0)
        if not dense_depth + conv_depth:
            raise ValueError(
                "conv_depth=0 and dense_depth=0 leave no layer that takes the image as input: one "
                "of them must be at least 1."
            )
        conv_channels = check_size("conv_channels", conv_channels)
        dense_width = check_size("dense_width", dense_width)
        dense_features = check_size("dense_features", dense_features)
        width, depth = check_size("width", width), check_size("depth", depth)
        num_scales = check_size("num_scales", num_scales)
        check_instance("padding", padding, AbstractPadding)
        check_resolutions(f"num_scales={num_scales}", num_scales, space)
        self.readout = BumpReadout(num_steps, num_bumps)
        key_conv, key_dense, key_pixelwise = jax.random.split(key, 3)

        sizes = [inputs] + [conv_channels] * conv_depth
        conv = tuple(
            MultiScaleLayer(before, after, num_axes, num_scales, key=key, padding=padding)
            for before, after, key in _layers(sizes, key=key_conv)
        )
        # The first layer takes the image itself, the others the output of a softplus.
        self.conv = conv[:1] + tuple(jax.tree.map(_after_softplus, conv[1:]))
        # The last dense layer has `dense_features` units for each pixel.
        sizes = [inputs * pixels] + [dense_width] * (dense_depth - 1) + [dense_features * pixels]
        self.dense = tuple(
            eqx.nn.Linear(before, after, key=key)
            for before, after, key in _layers(sizes, key=key_dense)
            if dense_depth
        )
        # The last size, 0, is a placeholder: only the key of the last layer is used.
        features = conv_channels * bool(conv_depth) + dense_features * bool(dense_depth)
        *layers, (_, _, key_last) = _layers([features] + [width] * depth + [0], key=key_pixelwise)
        self.pointwise = tuple(
            Convolution(before, after, num_axes, window=1, key=key) for before, after, key in layers
        )
        coefficients = self.layout.outputs * self.readout.num_bumps
        self.last = zeroed(Convolution(width, coefficients, num_axes, window=1, key=key_last))

    def features(self, x_t: Array) -> Float[Array, "*space features"]:
        """Return the concatenated features of both pathways, for each pixel of one event."""
        image = self.layout.to_image(x_t, self.last.weight.dtype)
        pathways = []
        if self.conv:
            h = image
            for layer in self.conv:
                h = layer(h)
            pathways.append(h)
        if self.dense:
            h = image.reshape(-1)
            for layer in self.dense:
                h = jnp.tanh(layer(h))
            pathways.append(h.reshape(*self.layout.space, -1))
        return jnp.concatenate(pathways, axis=-1)

    def coefficients(self, x_t: Array) -> Float[Array, "*space outputs num_bumps"]:
        """Return the y_j of each pixel and output channel, which do not depend on t."""
        h = self.features(x_t)
        for layer in self.pointwise:
            h = jnp.tanh(layer(h))
        shape = (*self.layout.space, self.layout.outputs, self.readout.num_bumps)
        return self.last(h).reshape(shape)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event; the context is ignored."""
        del context
        return self.layout.from_image(self.readout(self.coefficients(x_t), t))


def _after_softplus(leaf: Array) -> Array:
    """Adapt initial weights to inputs that are outputs of a softplus."""
    # Such inputs are positive, with mean 0.8, which would dominate the differences between pixels:
    # weights that sum to zero for each output cancel it. The slope of softplus would halve the
    # differences at each layer: a factor of 1.9 compensates.
    if leaf.ndim == 1:  # biases
        return leaf
    return 1.9 * (leaf - jnp.mean(leaf, axis=range(leaf.ndim - 1)))


def _layers(sizes: list[int], *, key: Array) -> list[tuple[int, int, Array]]:
    """Return inputs, outputs and a key for each layer between `sizes`."""
    if len(sizes) < 2:
        return []
    keys = jax.random.split(key, len(sizes) - 1)
    return list(zip(sizes[:-1], sizes[1:], keys, strict=True))
