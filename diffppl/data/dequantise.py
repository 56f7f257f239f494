"""Uniform dequantisation of eight-bit images.

An image is a vector of levels k in 0..255, for which a density of real numbers is not a likelihood:
a model can have a spike at every level, where its density is unbounded. With uniform noise,
x = k + u with u in [0, 1), a density that is constant over each level is optimal, and

    log2 P(k) = log2 (integral of p over the cell of k) >= E_u log2 p(k + u):

minus the expected log-density of noisy images is, in bits, at least the code length of the images.
The noise is one level wide *in the units of the levels*. The code of the 2015 paper added it after
scaling the images to unit variance, so that it was a tenth (MNIST) or a sixteenth (CIFAR-10) of a
level wide, which permits spikes. Here the images, with the noise, stay in units of the levels, and
the model's `Scaling` brings them to unit variance.

References:
    Uria, Murray and Larochelle 2013, section 5.1 (the noise); Theis, van den Oord and Bethge 2016,
    section 3.1 (the bound); Sohl-Dickstein et al. 2015, section 3.2.
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from ..checks.arguments import check_key
from ..checks.arrays import Numbers, as_numbers, describe_invalid
from .source import AbstractSource, InMemory, as_source

MAX_LEVEL = 255  # the highest level
FEW = 100  # number of draws of a source that are checked


def dequantise(key: Array, images: Numbers) -> Float[Array, "..."]:
    """Add uniform noise of one level to levels 0..255; `floor` recovers the levels.

    Use it once on held-out images; for fitting, `Dequantised` draws new noise for each minibatch.

    Args:
        key: a typed JAX key.
        images: whole numbers 0..255, any shape.

    Returns:
        Numbers in [0, 256), of the same shape. Their log-density in these units is in nats per
        eight-bit image; `likelihood.bits_per_dim` converts it.

    Raises:
        TypeError: numbers that are not whole.
        ValueError: numbers outside 0..255.

    Example:
        >>> test = dp.data.dequantise(jax.random.key(1), test_images)
        >>> bound = dp.elbo(jax.random.key(2), model, test)
        >>> dp.likelihood.bits_per_dim(bound, model.event_shape)
        Estimate(4.210 ± 0.012 bits/dim, n=360)
    """
    return _with_noise(check_key(key), as_levels("images", images))


def _with_noise(key: Array, levels: Integer[Array, "..."]) -> Float[Array, "..."]:
    # Noise of 16 bits: its sum with a level of 8 bits is exact in float32, hence never rounded up
    # to the next level. Each number of 32 random bits yields two.
    bits = jax.random.bits(key, (math.ceil(levels.size / 2),), jnp.uint32)
    noise = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(-1)[: levels.size]
    noisy = levels.astype(float) + noise.reshape(levels.shape).astype(float) / 2**16
    # Levels out of range become NaN, since no error can be raised inside a trace.
    return jnp.where((levels >= 0) & (levels <= MAX_LEVEL), noisy, jnp.nan)


@final
class Dequantised(AbstractSource):
    """Eight-bit images with uniform noise of one level, drawn anew for each minibatch.

    Images are stored as one byte per number. See `dequantise` for the units, and for held-out
    images.

    Args:
        images: whole numbers 0..255, shape `(n, *event_shape)`; or a source of them, such as
            `Crops`, `Flipped` or `DeadLeaves`, or `InMemory` for images with contexts.

    Raises:
        TypeError: numbers that are not whole.
        ValueError: numbers outside 0..255, or no images.

    Example:
        >>> source = dp.data.Dequantised(images)
        >>> result = dp.fit(jax.random.key(0), model, source, num_iterations=10_000)
    """

    source: AbstractSource

    def __init__(self, images: AbstractSource | Numbers) -> None:
        if not isinstance(images, AbstractSource | type):
            images = InMemory(as_levels("images", images))
        source = as_source("images", images)
        drawn, _ = eqx.filter_eval_shape(source.batch, jax.random.key(0), 1)
        if not jnp.issubdtype(drawn.dtype, jnp.integer):
            raise TypeError(
                f"images is a source of dtype {drawn.dtype}; noise is added to 8-bit levels, so "
                "it must draw whole numbers 0..255."
            )
        if drawn.dtype != jnp.uint8:
            # All rows of an array are checked; of other sources, some draws.
            is_rows = isinstance(source, InMemory)
            drawn = source.data if is_rows else source.batch(jax.random.key(0), FEW)[0]
            as_levels("images", drawn)
        self.source = source

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.source.event_shape

    def batch(self, key: Array, size: int) -> tuple[Float[Array, "..."], Array | None]:
        key_source, key_noise = jax.random.split(check_key(key))
        levels, context = self.source.batch(key_source, size)
        return _with_noise(key_noise, levels), context


def as_levels(name: str, images: Numbers) -> Integer[Array, "..."]:
    """Return whole numbers 0..255 as uint8; return tracers unchanged, without a check of values.

    Raises:
        TypeError: numbers that are not whole.
        ValueError: numbers outside 0..255.
    """
    values = as_numbers(name, images)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(
            f"{name} has dtype {values.dtype}; noise is added to the stored levels, so it "
            "must hold whole numbers 0..255. If they were divided by 255, multiply and round."
        )
    if isinstance(values, Tracer):
        return values
    bad = np.asarray((values < 0) | (values > MAX_LEVEL))
    if bad.any():
        raise ValueError(
            f"{name} must hold 8-bit levels 0..{MAX_LEVEL}; {describe_invalid(bad, values)} are "
            "outside."
        )
    return jnp.asarray(values.astype(np.uint8))
