"""What a convolution sees beyond the edges of an image.

| padding    | beyond the edge is    | then                                                        |
| ---------- | --------------------- | ----------------------------------------------------------- |
| `Zeros`    | zero                  | the network can tell where in the image it is               |
| `Edge`     | the last pixel, again | a constant image stays constant                             |
| `Periodic` | the other side        | what is shifted round gives what is shifted round: lattices |
"""

import abc
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .convolve import Padding


class AbstractPadding(eqx.Module):
    """How an image goes on beyond its edges."""

    @abc.abstractmethod
    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        """The image with as much of its continuation as is not zero, and the zeros still to add.

        Args:
            x: the image.
            widths: how far it shall go on, on both sides of each axis.
        """


@final
class Zeros(AbstractPadding):
    """Zero beyond the edge: the usual choice, and the fastest."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        """The image itself."""
        return x, _both_sides(widths)


@final
class Edge(AbstractPadding):
    """The pixel at the edge goes on for ever."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        """The image with its edge repeated."""
        x = jnp.pad(x, (*_both_sides(widths), (0, 0)), mode="edge")
        return x, _both_sides((0,) * len(widths))


@final
class Periodic(AbstractPadding):
    """The image repeats itself: a ring, a torus."""

    def extend(
        self, x: Float[Array, "*space channels"], widths: tuple[int, ...]
    ) -> tuple[Float[Array, "*more_space channels"], Padding]:
        """The image with a part of its other side on each side."""
        x = jnp.pad(x, (*_both_sides(widths), (0, 0)), mode="wrap")
        return x, _both_sides((0,) * len(widths))


def _both_sides(widths: tuple[int, ...]) -> Padding:
    return tuple((width, width) for width in widths)
