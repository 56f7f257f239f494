"""More images from the same images: mirrored ones, and windows of large ones.

An augmented source draws from another distribution than its images do, and that is what a model of
it learns. So use what leaves the distribution as it is: a photograph may be mirrored, a digit may
not; a texture looks the same in every window, a face does not. A bound is then meant, as always, of
the held-out data it is computed for.

The axes of an image are rows, columns and, if it has them, channels.
"""

from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .source import AbstractSource, InMemory, as_rows


@final
class Flipped(AbstractSource):
    """Half of the images mirrored, left and right exchanged.

    Args:
        images: shape `(n, height, width)` or `(n, height, width, channels)`, or a source of such.

    Raises:
        ValueError: other shapes.

    Example:
        >>> source = dp.data.Dequantised(dp.data.Flipped(images))
    """

    source: AbstractSource

    def __init__(self, images: Any) -> None:
        self.source = images if isinstance(images, AbstractSource) else InMemory(images)
        if len(self.source.event_shape) not in (2, 3):
            raise ValueError(
                f"images has events of shape {self.source.event_shape}; they need shape (height, "
                "width) or (height, width, channels)."
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.source.event_shape

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], Array | None]:
        """See `AbstractSource.batch`."""
        key_source, key_flip = jax.random.split(key)
        images, context = self.source.batch(key_source, size)
        flip = jax.random.bernoulli(key_flip, shape=(size,))
        flip = flip.reshape(size, *[1] * len(self.event_shape))
        return jnp.where(flip, jnp.flip(images, axis=2), images), context


@final
class Crops(AbstractSource):
    """Windows of large images, each place as likely as any other.

    For held-out windows, hold out images, and draw from them once, with one key: windows of the
    same image overlap, so they are no test of one another.

    Args:
        images: shape `(n, height, width)` or `(n, height, width, channels)`; their dtype is kept.
        size: height and width of a window.

    Raises:
        TypeError: not numbers.
        ValueError: other shapes, or windows larger than the images.

    Example:
        >>> source = dp.data.Dequantised(dp.data.Crops(textures[:-4], size=(64, 64)))
        >>> held_out, _ = dp.data.Crops(textures[-4:], (64, 64)).batch(jax.random.key(0), 1_000)
        >>> held_out = dp.data.dequantise(jax.random.key(1), held_out)
    """

    images: Shaped[Array, "n height width *channels"]
    size: tuple[int, int]

    def __init__(self, images: Any, size: tuple[int, int]) -> None:
        self.images = as_rows("images", images)
        if self.images.ndim not in (3, 4):
            raise ValueError(
                f"images has shape {self.images.shape}; it needs shape (n, height, width) or "
                "(n, height, width, channels)."
            )
        self.size = check_image_size(size)
        if any(a > b for a, b in zip(self.size, self.images.shape[1:3], strict=True)):
            raise ValueError(
                f"size={self.size} is larger than the images, which are {self.images.shape[1:3]}."
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one window."""
        return (*self.size, *self.images.shape[3:])

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], None]:
        """See `AbstractSource.batch`."""
        num, *shape = self.images.shape[:3]
        places = [n - wanted + 1 for n, wanted in zip(shape, self.size, strict=True)]
        key_image, *keys = jax.random.split(key, 3)
        images = jax.random.randint(key_image, (size,), 0, num)
        rows, columns = (
            jax.random.randint(k, (size,), 0, n) for k, n in zip(keys, places, strict=True)
        )

        def window(image: Array, row: Array, column: Array) -> Array:
            start = (image, row, column, *[0] * (self.images.ndim - 3))
            return jax.lax.dynamic_slice(self.images, start, (1, *self.event_shape))[0]

        return jax.vmap(window)(images, rows, columns), None


def check_image_size(size: Any) -> tuple[int, int]:
    """A height and a width.

    Raises:
        ValueError: anything else.
    """
    whole = isinstance(size, tuple) and all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size
    )
    if not whole or len(size) != 2:
        raise ValueError(f"size={size!r} must be a height and a width, such as (64, 64).")
    return size
