"""Augmentation of images: reflections, and crops of large images.

A model of an augmented source learns the distribution of the augmented images. Use augmentations
that leave the distribution unchanged: photographs can be mirrored, digits cannot; textures can be
cropped at random, faces cannot. A bound refers, as always, to the held-out data for which it is
computed.

An image has shape `(height, width)`, or that with channels. They are taken to be last if the last
axis has at most four entries and the first has more, as in (32, 32, 3); otherwise `channel_axis` is
required, such as 0 for (3, 32, 32): channels taken for rows would mirror images upside down.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ..checks.arguments import check_key, check_shape, check_size, described, whole_number
from ..checks.arrays import Numbers
from .source import AbstractSource, as_rows, as_source


@final
class Flipped(AbstractSource):
    """Images, mirrored left to right with probability 1/2.

    Args:
        images: shape `(n, height, width)`, or that with channels; or a source of such images.
        channel_axis: the channel axis of an image, 0 or -1, if it has channels.

    Raises:
        ValueError: other shapes, or an image of three axes whose channel axis is ambiguous.

    Example:
        >>> source = dp.data.Dequantised(dp.data.Flipped(images))
    """

    source: AbstractSource
    column_axis: int = eqx.field(static=True)

    def __init__(
        self, images: AbstractSource | Numbers, *, channel_axis: int | None = None
    ) -> None:
        self.source = as_source("images", images)
        self.column_axis = space_axes(self.source.event_shape, channel_axis)[1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.source.event_shape

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], Array | None]:
        key_source, key_flip = jax.random.split(check_key(key))
        images, context = self.source.batch(key_source, size)
        flip = jax.random.bernoulli(key_flip, shape=(size,))
        # One flip for each image, broadcast over the axes of an event.
        flip = flip.reshape(size, *[1] * len(self.event_shape))
        return jnp.where(flip, jnp.flip(images, axis=1 + self.column_axis), images), context


@final
class Crops(AbstractSource):
    """Random crops of large images, at positions that are uniformly distributed.

    For held-out crops, hold out images, and draw from them once, with one key: crops of the same
    image overlap, so they are not independent test data.

    Args:
        images: shape `(n, height, width)`, or that with channels; their dtype is kept, as by
            `InMemory`.
        size: height and width of a crop.
        channel_axis: the channel axis of an image, 0 or -1, if it has channels.

    Raises:
        TypeError: not numbers.
        ValueError: other shapes, an image of three axes whose channel axis is ambiguous, or crops
            larger than the images.

    Example:
        >>> source = dp.data.Dequantised(dp.data.Crops(textures[:-4], size=(64, 64)))
        >>> held_out, _ = dp.data.Crops(textures[-4:], (64, 64)).batch(jax.random.key(0), 1_000)
        >>> held_out = dp.data.dequantise(jax.random.key(1), held_out)
    """

    images: Shaped[Array, "n ..."]
    size: tuple[int, int]
    axes: tuple[int, int] = eqx.field(static=True)  # the row and the column axis of an image

    def __init__(
        self, images: Numbers, size: tuple[int, int], *, channel_axis: int | None = None
    ) -> None:
        self.images = as_rows("images", images)
        self.size = check_image_size(size)
        self.axes = space_axes(self.images.shape[1:], channel_axis)
        whole = tuple(self.images.shape[1 + axis] for axis in self.axes)
        if any(a > b for a, b in zip(self.size, whole, strict=True)):
            raise ValueError(f"size={self.size} is larger than the images, which are {whole}.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        shape = list(self.images.shape[1:])
        for axis, length in zip(self.axes, self.size, strict=True):
            shape[axis] = length
        return tuple(shape)

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], None]:
        key, size = check_key(key), check_size("size", size)
        num, *shape = self.images.shape
        # Number of positions along each axis at which a crop lies inside the image.
        counts = [shape[a] - n + 1 for a, n in zip(self.axes, self.size, strict=True)]
        limits = jnp.array([num, *counts])[:, None]
        images, rows, columns = jax.random.randint(key, (3, size), 0, limits)

        def crop(image: Array, row: Array, column: Array) -> Array:
            start = [jnp.zeros_like(row)] * len(shape)
            start[self.axes[0]], start[self.axes[1]] = row, column
            return jax.lax.dynamic_slice(self.images, (image, *start), (1, *self.event_shape))[0]

        return jax.vmap(crop)(images, rows, columns), None


MAX_CHANNELS = 4  # a last axis of at most this length is the channel axis by default


def space_axes(event_shape: tuple[int, ...], channel_axis: object) -> tuple[int, int]:
    """Return the row axis and the column axis of an image.

    Raises:
        ValueError: not the shape of an image, or three axes whose channel axis is ambiguous.
    """
    ndim = len(event_shape)
    if ndim not in (2, 3):
        raise ValueError(
            f"images has events of shape {event_shape}; they need shape (height, width), "
            "(height, width, channels) or, with channel_axis=0, (channels, height, width)."
        )
    if channel_axis is None and ndim == 3:
        if event_shape[-1] > MAX_CHANNELS or event_shape[0] <= MAX_CHANNELS:
            raise ValueError(
                f"images has events of shape {event_shape}, whose channels may be first or last: "
                "pass channel_axis=-1 for (height, width, channels), or channel_axis=0 for "
                "(channels, height, width)."
            )
        channel_axis = -1
    axes = list(range(ndim))
    if channel_axis is not None:
        axis = whole_number(channel_axis)
        if ndim == 2 or axis not in (0, -1, 2, -3):
            raise ValueError(
                f"channel_axis={described(channel_axis)} must be the first or the last axis of an "
                f"image of three, but images has events of shape {event_shape}."
            )
        del axes[axis]
    return axes[0], axes[1]


def check_image_size(size: object) -> tuple[int, int]:
    """Return `size` as a height and a width.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"size={described(size)} must be a height and a width, such as (64, 64).")
    height, width = check_shape("size", size)
    return height, width
