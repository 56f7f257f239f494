"""Dead leaves: images of discs that hide one another.

Discs rain on the plane, uniformly in place, with radii of density proportional to r^-a between two
limits; each has one grey level, and the last to fall hides what lies below. With a = 3 the image
looks the same at every scale between the limits, as photographs nearly do. Seen from below the law
is the same, and simpler to draw: the first disc to cover a pixel keeps it, so the rain can stop as
soon as every pixel is covered, and the draw is exact.

Only discs that may touch the image are drawn. Those of radius r have their centres in the image
widened by r on every side, so they come with density proportional to

    r^-a (height + 2r) (width + 2r),

a mixture of three power laws, where height and width are those between the centres of the outermost
pixels. A pixel takes the grey level at its centre: there is no anti-aliasing.

With A(d) the mean area that a disc shares with itself, moved by d,

    P(two pixels at distance d see the same leaf) = A(d) / (2 A(0) - A(d)),

which is also their correlation.

References:
    Matheron 1968; Jeulin 1997; Lee, Mumford and Huang 2001 (the power law); Kendall and Thonnes
    1999 (from below); Sohl-Dickstein et al. 2015, section 3.2 and figure 4.
"""

from typing import final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, Shaped

from ..batching import map_in_blocks
from ..checks.arguments import check_float, check_instance, check_key, check_pair, check_size
from .augment import check_image_size
from .source import AbstractSource

DISCS_AT_ONCE, IMAGES_AT_ONCE = 32, 32  # what the caches of a CPU like


@final
class DeadLeaves(AbstractSource):
    """Fresh images of discs that hide one another, without end.

    Args:
        size: height and width, in pixels.
        radii: the smallest and the largest radius, in pixels.
        exponent: a, of the radii's density r^-a.
        grey: the grey level of a disc, or its colour: a NumPyro distribution of one event. The
            shape of an image is `(height, width, *grey.event_shape)`.

    Raises:
        ValueError: bad sizes or limits, or a batch of distributions.

    Small discs cost the most: on two cores about 5,000 images a second of 32 x 32 pixels with
    radii from 1 to 32, and of 64 x 64 pixels 600 with radii from 1 to 64, or 2,000 from 2.

    Example:
        >>> source = dp.data.DeadLeaves(size=(32, 32), radii=(1.0, 32.0))
        >>> images, _ = source.batch(jax.random.key(0), 64)
    """

    size: tuple[int, int]
    r_min: Float[Array, ""]
    r_max: Float[Array, ""]
    exponent: float
    grey: dist.Distribution

    def __init__(
        self,
        size: tuple[int, int],
        radii: tuple[float, float],
        *,
        exponent: float = 3.0,
        grey: dist.Distribution = dist.Uniform(0.0, 1.0),  # noqa: B008 (immutable)
    ) -> None:
        self.size = check_image_size(size)
        limits = check_pair("radii", radii)
        self.r_min, self.r_max = (jnp.asarray(r, dtype=float) for r in limits)
        self.exponent = check_float("exponent", exponent)
        check_instance("grey", grey, dist.Distribution, remedy=", such as dist.Uniform(0.0, 1.0)")
        if grey.batch_shape:
            raise ValueError(
                f"grey has batch_shape {grey.batch_shape}; it must be one distribution, of all "
                "discs. Make colours one event with grey.to_event()."
            )
        self.grey = grey

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (*self.size, *self.grey.event_shape)

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], None]:
        keys = jax.random.split(check_key(key), check_size("size", size))
        return map_in_blocks(self.image, (keys,), IMAGES_AT_ONCE), None

    def image(self, key: Array) -> Shaped[Array, "height width *channels"]:
        """One image."""
        key_leaves, key_grey = jax.random.split(key)

        def shade(leaf: Array) -> Array:
            return jnp.asarray(self.grey.sample(jax.random.fold_in(key_grey, leaf)))

        return jax.vmap(jax.vmap(shade))(self.leaves(key_leaves))

    def leaves(self, key: Array) -> Int[Array, "height width"]:
        """Which disc each pixel shows, counted from 0 in the order in which they fell."""
        rows, columns = (jnp.arange(n, dtype=float) for n in self.size)

        def unfinished(carry: tuple[Array, Array]) -> Array:
            return jnp.any(carry[1] < 0)

        def rain(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            num, shown = carry
            row, column, radius = self.discs(jax.random.fold_in(key, num), DISCS_AT_ONCE)
            across = (columns - column[:, None]) ** 2
            left = radius[:, None] ** 2 - (rows - row[:, None]) ** 2
            first = jnp.full(self.size, -1, jnp.int32)
            for i in reversed(range(DISCS_AT_ONCE)):  # unrolled: one pass over the pixels
                first = jnp.where(across[i] <= left[i][:, None], num + i, first)
            return num + DISCS_AT_ONCE, jnp.where(shown < 0, first, shown)

        blank = jnp.full(self.size, -1, jnp.int32)
        return jax.lax.while_loop(unfinished, rain, (jnp.zeros((), jnp.int32), blank))[1]

    def discs(
        self, key: Array, num: int
    ) -> tuple[Float[Array, " num"], Float[Array, " num"], Float[Array, " num"]]:
        """Rows, columns and radii of discs that may touch the image."""
        height, width = (n - 1 for n in self.size)
        limits = self.r_min, self.r_max
        exponents = [self.exponent - i for i in range(3)]
        areas = jnp.array([height * width, 2.0 * (height + width), 4.0])  # of 1, r and r^2
        shares = jnp.cumsum(areas * jnp.stack([_mass(e, *limits) for e in exponents]))
        law, level, *place = jax.random.uniform(key, (4, num))
        first, second, third = (_quantile(level, e, *limits) for e in exponents)
        law = law * shares[-1]
        radius = jnp.where(law < shares[0], first, jnp.where(law < shares[1], second, third))
        row, column = (
            -radius + u * (n + 2 * radius) for u, n in zip(place, (height, width), strict=True)
        )
        return row, column, radius


def _mass(exponent: float, low: Array, high: Array) -> Float[Array, ""]:
    """The integral of r^-exponent between two limits."""
    if exponent == 1:
        return jnp.log(high / low)
    return (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)


def _quantile(level: Array, exponent: float, low: Array, high: Array) -> Float[Array, "..."]:
    """Of the density proportional to r^-exponent between two limits."""
    if exponent == 1:
        return low * (high / low) ** level
    start, end = low ** (1 - exponent), high ** (1 - exponent)
    return (start + level * (end - start)) ** (1 / (1 - exponent))
