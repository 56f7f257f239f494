"""How events are images: which axes are space, and which one is the channels, if any.

An image network works on `(*space, channels)`. An event has no channel axis, as a photograph in
greys of shape (28, 28), or it is first, (3, 32, 32), or last, (32, 32, 3). Whatever is left is
space: one axis for a signal, two for an image, three for a volume.
"""

import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import check_shape, check_size, described, whole_number


@final
class ImageLayout(eqx.Module):
    """Which axes of an event, and of the raw output, are what.

    Args:
        event_shape: shape of one datum.
        channel_axis: which of its axes are the channels, 0 or -1 (or any other); None if there are
            none. An event of three axes and more must have some.
        output_shape: shape of the raw output: `event_shape`, or that with more axes before it (the
            mean and the variance) or after it (categories).
        num_categories: for categories, how many states the chain has.

    Raises:
        ValueError: a shape that is none, or an axis that there is not.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)
    channel_axis: int | None = eqx.field(static=True)
    num_categories: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        channel_axis: int | None = None,
        output_shape: tuple[int, ...] | None = None,
        num_categories: int | None = None,
    ) -> None:
        self.event_shape = check_shape("event_shape", event_shape)
        event_shape = self.event_shape
        self.channel_axis = check_axis(channel_axis, event_shape)
        output_shape = event_shape if output_shape is None else output_shape
        self.output_shape = check_shape("output_shape", output_shape)
        if num_categories is not None:
            num_categories = check_size("num_categories", num_categories, least=2)
        self.num_categories = num_categories
        if self._axes_before() is None:
            raise ValueError(
                f"output_shape={output_shape} must be event_shape={event_shape}, or have more axes "
                f"before it, as {(2, *event_shape)}, or after it, as {(*event_shape, 5)}."
            )

    def resized(self, event_shape: tuple[int, ...]) -> "ImageLayout":
        """The same for events of another size, with as many axes and channels."""
        length, before = len(self.event_shape), self._axes_before() or 0
        shape = check_shape("event_shape", event_shape)
        after = self.output_shape[before + length :]
        output = (*self.output_shape[:before], *shape, *after)
        if len(shape) == length:
            found = ImageLayout(shape, self.channel_axis, output, self.num_categories)
            if found._channels() == self._channels():
                return found
        raise ValueError(
            f"event_shape={shape} must have the axes and the channels of {self.event_shape}."
        )

    @property
    def space(self) -> tuple[int, ...]:
        """Pixels along each spatial axis."""
        if self.channel_axis is None:
            return self.event_shape
        return self.event_shape[: self.channel_axis] + self.event_shape[self.channel_axis + 1 :]

    @property
    def inputs(self) -> int:
        """Numbers per pixel that come in."""
        return self._channels() * (self.num_categories or 1)

    @property
    def outputs(self) -> int:
        """Numbers per pixel that go out."""
        return math.prod(self.output_shape) // math.prod(self.space)

    def to_image(self, x_t: Array, dtype: Any) -> Float[Array, "*space inputs"]:
        """One event as the network's input.

        Real numbers are taken as they are; bits become -1 and 1, and categories one-hot vectors,
        of type `dtype`.
        """
        if x_t.shape != self.event_shape:
            raise ValueError(f"x_t has shape {x_t.shape}, but event_shape={self.event_shape}.")
        if self.channel_axis is not None:
            x_t = jnp.moveaxis(x_t, self.channel_axis, -1)
        if self.num_categories is not None:
            x_t = jax.nn.one_hot(x_t, self.num_categories, dtype=dtype)
        elif not jnp.issubdtype(x_t.dtype, jnp.inexact):
            x_t = 2 * x_t.astype(dtype) - 1
        return x_t.reshape(*self.space, -1)

    def from_image(self, y: Float[Array, "*space outputs"]) -> Float[Array, "*output_shape"]:
        """The network's output as the raw output for one event."""
        num_before, space = self._axes_before() or 0, self.space
        before = self.output_shape[:num_before]
        after = self.output_shape[num_before + len(self.event_shape) :]
        y = y.reshape(*space, *before, self._channels(), *after)
        end = len(space) + len(before)
        y = jnp.moveaxis(y, range(len(space), end), range(len(before)))
        if self.channel_axis is not None:
            y = jnp.moveaxis(y, end, len(before) + self.channel_axis)
        return y.reshape(self.output_shape)

    def _channels(self) -> int:
        return 1 if self.channel_axis is None else self.event_shape[self.channel_axis]

    def _axes_before(self) -> int | None:
        """How many axes of the output stand before those of the event; None if it does not fit.

        Where two readings are possible the extra axes are before, but with categories after.
        """
        length = len(self.event_shape)
        starts = range(len(self.output_shape) - length + 1)
        for start in starts if self.num_categories is not None else reversed(starts):
            if self.output_shape[start : start + length] == self.event_shape:
                return start
        return None


def check_axis(channel_axis: Any, event_shape: tuple[int, ...]) -> int | None:
    """The channel axis counted from the front, or an error that names it."""
    ndim = len(event_shape)
    if channel_axis is None:
        if 1 <= ndim <= 2:
            return None
        raise ValueError(
            f"channel_axis=None leaves {ndim} axes of space to event_shape={event_shape}. Say "
            "which are the channels: channel_axis=0 for (3, 32, 32), -1 for (32, 32, 3)."
        )
    axis = whole_number(channel_axis)
    if axis is None or not -ndim <= axis < ndim or not 2 <= ndim <= 4:
        raise ValueError(
            f"channel_axis={described(channel_axis)} must be an axis of event_shape={event_shape}, "
            "which needs one to three more of them, for space."
        )
    return axis % ndim
