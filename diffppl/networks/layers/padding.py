"""Padding of images at the edges, for convolutions.

| padding    | beyond the edge   | property of the convolution                            |
| ---------- | ----------------- | ------------------------------------------------------ |
| `Zeros`    | zero              | the output can depend on the position in the image     |
| `Edge`     | the edge pixel    | a constant image stays constant                        |
| `Periodic` | the opposite side | equivariant to cyclic shifts, as for periodic lattices |
"""

import abc
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .convolve import Padding


class AbstractPadding(eqx.Module):
    """The extension of an image beyond its edges."""

    @abc.abstractmethod
    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        """Return the image with its non-zero padding, and the zero padding still to be added.

        Args:
            x: the image.
            widths: pixels of padding on both sides of each axis.
        """


@final
class Zeros(AbstractPadding):
    """Zero padding: the usual choice, and the fastest."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        # `convolve` pads with zeros itself.
        return x, _both_sides(widths)


@final
class Edge(AbstractPadding):
    """Replicate the edge pixel."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        x = jnp.pad(x, (*_both_sides(widths), (0, 0)), mode="edge")
        return x, _both_sides((0,) * len(widths))


@final
class Periodic(AbstractPadding):
    """Periodic boundaries: a ring, a torus."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        x = jnp.pad(x, (*_both_sides(widths), (0, 0)), mode="wrap")
        return x, _both_sides((0,) * len(widths))


def _both_sides(widths: tuple[int, ...]) -> Padding:
    return tuple((width, width) for width in widths)
