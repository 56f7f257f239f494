"""Layout of events as vectors, for dense networks, and as images.

A dense network operates on vectors, which hold all numbers of an event.

An image network operates on `(*space, channels)`. The channel axis of an event is absent, as in a
greyscale image of shape (28, 28), or first, (3, 32, 32), or last, (32, 32, 3). The remaining axes
are spatial: one for a signal, two for an image, three for a volume.
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ...checks.arguments import check_shape, check_size, described, whole_number


@final
class DenseLayout(eqx.Module):
    """The vectors of an event and of the raw output.

    Args:
        event_shape: shape of one datum.
        output_shape: shape of the raw output, by default `event_shape`.
        num_categories: for categories, the number of states of the chain.

    Raises:
        ValueError: an invalid shape or size.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)
    num_categories: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        output_shape: tuple[int, ...] | None = None,
        num_categories: int | None = None,
    ) -> None:
        self.event_shape, self.output_shape = _shapes(event_shape, output_shape)
        self.num_categories = _check_categories(num_categories)

    @property
    def inputs(self) -> int:
        """Length of the network's input, with categories one-hot encoded."""
        return math.prod(self.event_shape) * (self.num_categories or 1)

    @property
    def outputs(self) -> int:
        """Length of the network's output."""
        return math.prod(self.output_shape)

    def to_vector(self, x_t: Array) -> Float[Array, " inputs"]:
        """Convert one event to the network's input; see `encoded`."""
        return encoded(x_t, self.num_categories, float).reshape(-1)

    def from_vector(self, y: Float[Array, " outputs"]) -> Float[Array, "*output_shape"]:
        """Convert the network's output to the raw output for one event."""
        return y.reshape(self.output_shape)


@final
class ImageLayout(eqx.Module):
    """The roles of the axes of an event and of the raw output.

    Args:
        event_shape: shape of one datum.
        channel_axis: the channel axis of the event, 0 or -1 (or any other); None if there is none.
            An event of three or more axes must have one.
        output_shape: shape of the raw output: `event_shape`, or that with more axes before it (the
            mean and the variance) or after it (categories).
        num_categories: for categories, the number of states of the chain.

    Raises:
        ValueError: an invalid shape, or an axis out of range.
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
        self.event_shape, self.output_shape = _shapes(event_shape, output_shape)
        event_shape = self.event_shape
        self.channel_axis = check_axis(channel_axis, event_shape)
        self.num_categories = _check_categories(num_categories)
        if self._axes_before() is None:
            raise ValueError(
                f"output_shape={self.output_shape} must be event_shape={event_shape}, or have more "
                f"axes before it, as {(2, *event_shape)}, or after it, as {(*event_shape, 5)}."
            )

    def resized(self, event_shape: tuple[int, ...]) -> "ImageLayout":
        """Return the layout for events of another size, with as many axes and channels."""
        length, before = len(self.event_shape), self._axes_before() or 0
        shape = check_shape("event_shape", event_shape)
        after = self.output_shape[before + length :]
        # The raw output keeps its axes before and after those of the event.
        output = (*self.output_shape[:before], *shape, *after)
        if len(shape) == length:
            layout = ImageLayout(shape, self.channel_axis, output, self.num_categories)
            if layout._channels() == self._channels():
                return layout
        raise ValueError(
            f"event_shape={shape} must have the axes and the channels of {self.event_shape}."
        )

    @property
    def space(self) -> tuple[int, ...]:
        """Numbers of pixels along the spatial axes."""
        if self.channel_axis is None:
            return self.event_shape
        return self.event_shape[: self.channel_axis] + self.event_shape[self.channel_axis + 1 :]

    @property
    def inputs(self) -> int:
        """Input channels of the network, with categories one-hot encoded."""
        return self._channels() * (self.num_categories or 1)

    @property
    def outputs(self) -> int:
        """Output channels of the network."""
        return math.prod(self.output_shape) // math.prod(self.space)

    def to_image(self, x_t: Array, dtype: DTypeLike) -> Float[Array, "*space inputs"]:
        """Convert one event to the network's input; see `encoded`."""
        if x_t.shape != self.event_shape:
            raise ValueError(f"x_t has shape {x_t.shape}, but event_shape={self.event_shape}.")
        if self.channel_axis is not None:
            x_t = jnp.moveaxis(x_t, self.channel_axis, -1)
        return encoded(x_t, self.num_categories, dtype).reshape(*self.space, -1)

    def from_image(self, y: Float[Array, "*space outputs"]) -> Float[Array, "*output_shape"]:
        """Convert the network's output to the raw output for one event."""
        num_before, space = self._axes_before() or 0, self.space
        before = self.output_shape[:num_before]
        after = self.output_shape[num_before + len(self.event_shape) :]
        y = y.reshape(*space, *before, self._channels(), *after)
        # Leading axes of the raw output go before the spatial ones, then channels to their axis.
        end = len(space) + len(before)
        y = jnp.moveaxis(y, range(len(space), end), range(len(before)))
        if self.channel_axis is not None:
            y = jnp.moveaxis(y, end, len(before) + self.channel_axis)
        return y.reshape(self.output_shape)

    def _channels(self) -> int:
        return 1 if self.channel_axis is None else self.event_shape[self.channel_axis]

    def _axes_before(self) -> int | None:
        """Return the number of output axes before those of the event; None if they do not match.

        If several positions match, the extra axes are before the event, or after it for categories.
        """
        length = len(self.event_shape)
        starts = range(len(self.output_shape) - length + 1)
        for start in starts if self.num_categories is not None else reversed(starts):
            if self.output_shape[start : start + length] == self.event_shape:
                return start
        return None


def encoded(x_t: Array, num_categories: int | None, dtype: DTypeLike) -> Float[Array, "..."]:
    """Encode an event by numbers of order one.

    Real numbers are unchanged; bits, which are integers, become -1 and 1, of type `dtype`; with
    `num_categories` integers become one-hot vectors of that length, on a new last axis.
    """
    if num_categories is not None:
        return jax.nn.one_hot(x_t, num_categories, dtype=dtype)
    return x_t if jnp.issubdtype(x_t.dtype, jnp.inexact) else 2 * x_t.astype(dtype) - 1


def num_categories_of(network: PyTree) -> set[int | None]:
    """Return `num_categories` of the parts of a network, None for a part with numeric input.

    The set is empty for networks that are not of this package.
    """
    # Read from the parts, so that wrappers need not forward it.
    kinds = (DenseLayout, ImageLayout)
    parts = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, kinds))
    return {part.num_categories for part in parts if isinstance(part, kinds)}


def _shapes(
    event_shape: tuple[int, ...], output_shape: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return valid shapes of the event and of the raw output, which are equal by default."""
    event_shape = check_shape("event_shape", event_shape)
    output_shape = event_shape if output_shape is None else output_shape
    return event_shape, check_shape("output_shape", output_shape)


def _check_categories(num_categories: int | None) -> int | None:
    if num_categories is None:
        return None
    return check_size("num_categories", num_categories, least=2)


def check_axis(channel_axis: object, event_shape: tuple[int, ...]) -> int | None:
    """Return the channel axis counted from the front; ValueError if it is invalid."""
    ndim = len(event_shape)
    if channel_axis is None:
        # Three axes may be a volume, but are more often an image with channels: no default.
        if 1 <= ndim <= 2:
            return None
        raise ValueError(
            f"channel_axis=None leaves {ndim} spatial axes in event_shape={event_shape}. Give the "
            "channel axis: channel_axis=0 for (3, 32, 32), -1 for (32, 32, 3)."
        )
    axis = whole_number(channel_axis)
    if axis is None or not -ndim <= axis < ndim or not 2 <= ndim <= 4:
        raise ValueError(
            f"channel_axis={described(channel_axis)} must be an axis of event_shape={event_shape}, "
            "which must have one to three spatial axes besides."
        )
    return axis % ndim
