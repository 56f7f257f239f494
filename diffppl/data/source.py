"""Sources of minibatches."""

import abc
from typing import final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Shaped

from ..checks.arguments import check_key, check_size, described
from ..checks.arrays import Numbers, as_array, as_numbers, check_precision, check_rows


class AbstractSource(eqx.Module):
    """A source of any number of minibatches of one kind of data, drawn on the device.

    `fit` draws one per iteration inside its compiled loop. To add a source, subclass this,
    mark it `typing.final`, implement both members, and add a row to the tests' registry.
    """

    @property
    @abc.abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""

    @abc.abstractmethod
    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], Array | None]:
        """Draw independent data.

        Must be pure, as the caller compiles it: the draws depend on `key` only.

        Args:
            key: a typed JAX key.
            size: number of data.

        Returns:
            Data in the user's units, shape `(size, *event_shape)`, and their contexts, shape
            `(size, *context_shape)`, or None.
        """


@final
class InMemory(AbstractSource):
    """Rows of an array, drawn with replacement.

    Args:
        data: shape `(n, *event_shape)`; its dtype is kept, in JAX's precision: 64-bit numbers
            become 32-bit ones, unless `jax_enable_x64` is set.
        context: one per datum, shape `(n, *context_shape)`, if there are any.

    Raises:
        TypeError: not numbers, or a masked array.
        ValueError: no data, numbers that JAX's precision cannot represent, or different numbers of
            contexts and data.

    Example:
        >>> source = dp.data.InMemory(images, context=labels)
        >>> x_0, context = source.batch(jax.random.key(0), 64)
    """

    data: Shaped[Array, "n ..."]
    context: Shaped[Array, "n ..."] | None

    def __init__(self, data: Numbers, context: Numbers | None = None) -> None:
        self.data = as_rows("data", data)
        self.context = None if context is None else as_rows("context", context)
        if self.context is not None and self.context.shape[0] != self.data.shape[0]:
            raise ValueError(
                f"context has {self.context.shape[0]} rows, and data have {self.data.shape[0]}; "
                "it needs one for each datum."
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.data.shape[1:]

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], Array | None]:
        key, size = check_key(key), check_size("size", size)
        rows = jax.random.randint(key, (size,), 0, self.data.shape[0])
        return self.data[rows], None if self.context is None else self.context[rows]


def as_source(name: str, images: AbstractSource | Numbers) -> AbstractSource:
    """Return a source unchanged, and an array as `InMemory`.

    Raises:
        TypeError: a class instead of an instance, or not numbers.
    """
    if isinstance(images, type):
        raise TypeError(f"{name}={described(images)} must be an array or a source of them.")
    return images if isinstance(images, AbstractSource) else InMemory(as_rows(name, images))


def as_rows(name: str, x: Numbers) -> Shaped[Array, "n ..."]:
    """Return an array of real numbers with a leading axis of at least one row, on the device.

    Raises:
        TypeError: not numbers, or a masked array.
        ValueError: no rows, or numbers that JAX's precision cannot represent or distinguish.
    """
    values = as_numbers(name, x)
    check_rows(name, values)
    if isinstance(x, jax.Array):  # already in JAX's precision
        return x
    array = as_array(name, values)
    if isinstance(values, np.ndarray):
        check_precision(name, values)
    return array
