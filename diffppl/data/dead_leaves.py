"""Dead leaves: images of discs that occlude one another.

Discs fall on the plane at uniform positions, with radii of density proportional to r^-a between two
limits; each has one grey level, and later discs occlude earlier ones. With a = 3 the images are
scale-invariant between the limits, as photographs approximately are. The distribution is the same
if earlier discs occlude later ones (the view from below): each pixel then keeps the first disc that
covers it, so sampling can stop once every pixel is covered, and is exact.

Only discs that may intersect the image are drawn. Those of radius r have their centres in the image
extended by r on every side, so their radii have density proportional to

    r^-a (height + 2r) (width + 2r),

a mixture of three power laws, where height and width are those between the centres of the outermost
pixels. A pixel takes the grey level at its centre, without anti-aliasing.

With A(d) the mean area of the intersection of a disc with its translate by d,

    P(two pixels at distance d show the same disc) = A(d) / (2 A(0) - A(d)),

which is also their correlation.

References:
    Matheron 1968; Jeulin 1997; Lee, Mumford and Huang 2001 (the power law); Kendall and Thonnes
    1999 (view from below); Sohl-Dickstein et al. 2015, section 3.2 and figure 4.
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

DISCS_AT_ONCE, IMAGES_AT_ONCE = 32, 32  # sized for the caches of a CPU


@final
class DeadLeaves(AbstractSource):
    """Images of discs that occlude one another, drawn anew for each minibatch.

    Args:
        size: height and width, in pixels.
        radii: the smallest and the largest radius, in pixels.
        exponent: exponent a of the density r^-a of the radii.
        grey: distribution of the grey level, or colour, of a disc: a NumPyro distribution of one
            event. The shape of an image is `(height, width, *grey.event_shape)`.

    Raises:
        ValueError: invalid sizes or limits, or a batch of distributions.

    Small discs dominate the cost: on two cores, about 5,000 images per second of 32 x 32 pixels
    with radii from 1 to 32; of 64 x 64 pixels, 600 with radii from 1 to 64, and 2,000 from 2 to 64.

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
        grey: dist.Distribution = dist.Uniform(0.0, 1.0),
    ) -> None:
        self.size = check_image_size(size)
        limits = check_pair("radii", radii)
        self.r_min, self.r_max = (jnp.asarray(r, dtype=float) for r in limits)
        self.exponent = check_float("exponent", exponent)
        check_instance("grey", grey, dist.Distribution, remedy=", such as dist.Uniform(0.0, 1.0)")
        if grey.batch_shape:
            raise ValueError(
                f"grey has batch_shape {grey.batch_shape}; it must be one distribution, shared by "
                "all discs. Make colours one event with grey.to_event()."
            )
        self.grey = grey

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (*self.size, *self.grey.event_shape)

    def batch(self, key: Array, size: int) -> tuple[Shaped[Array, "..."], None]:
        keys = jax.random.split(check_key(key), check_size("size", size))
        return map_in_blocks(self.image, (keys,), IMAGES_AT_ONCE), None

    def image(self, key: Array) -> Shaped[Array, "height width *channels"]:
        """Draw one image."""
        key_leaves, key_grey = jax.random.split(key)

        def shade(leaf: Array) -> Array:
            return jnp.asarray(self.grey.sample(jax.random.fold_in(key_grey, leaf)))

        return jax.vmap(jax.vmap(shade))(self.leaves(key_leaves))

    def leaves(self, key: Array) -> Int[Array, "height width"]:
        """Return the index of the disc that each pixel shows, in the order of the draws from 0."""
        rows, columns = (jnp.arange(n, dtype=float) for n in self.size)

        def unfinished(carry: tuple[Array, Array]) -> Array:
            return jnp.any(carry[1] < 0)

        def draw_discs(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            num, visible = carry
            row, column, radius = self.discs(jax.random.fold_in(key, num), DISCS_AT_ONCE)
            # A disc covers a pixel if dx^2 <= radius^2 - dy^2.
            dx_squared = (columns - column[:, None]) ** 2
            limit = radius[:, None] ** 2 - (rows - row[:, None]) ** 2
            first = jnp.full(self.size, -1, jnp.int32)
            # Last to first, so that the first disc remains; unrolled into one pass over the pixels.
            for i in reversed(range(DISCS_AT_ONCE)):
                first = jnp.where(dx_squared[i] <= limit[i][:, None], num + i, first)
            return num + DISCS_AT_ONCE, jnp.where(visible < 0, first, visible)

        blank = jnp.full(self.size, -1, jnp.int32)
        return jax.lax.while_loop(unfinished, draw_discs, (jnp.zeros((), jnp.int32), blank))[1]

    def discs(
        self, key: Array, num: int
    ) -> tuple[Float[Array, " num"], Float[Array, " num"], Float[Array, " num"]]:
        """Draw the rows, columns and radii of discs that may intersect the image."""
        height, width = (n - 1 for n in self.size)
        powers = jnp.arange(3) - self.exponent
        # (height + 2r) (width + 2r) as coefficients of 1, r and r^2: a power law for each, whose
        # normaliser is the ratio of its power to its density.
        areas = jnp.array([height * width, 2.0 * (height + width), 4.0])
        laws = dist.DoublyTruncatedPowerLaw(powers, self.r_min, self.r_max)
        normalisers = self.r_min**powers / jnp.exp(laws.log_prob(self.r_min))
        shares = jnp.cumsum(areas * normalisers)
        component, level, *place = jax.random.uniform(key, (4, num))
        index = jnp.searchsorted(shares, component * shares[-1], method="compare_all")
        law = dist.DoublyTruncatedPowerLaw(powers[index], self.r_min, self.r_max)
        radius = law.icdf(level)
        row, column = (
            -radius + u * (n + 2 * radius) for u, n in zip(place, (height, width), strict=True)
        )
        return row, column, radius
