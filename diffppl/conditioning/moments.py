"""Mean and covariance of observed sites, for the twists on real data.

An observed site with density r(y; x) enters a Gaussian twist as N(y; h(x), R(x)), where h and R are
the mean and the (co)variance of its distribution. Three cases are treated separately:

* a *masked* entry has infinite variance: its residual, Jacobian and covariances are 0;
* a site under `handlers.scale` with factor s has the density r^s, whose variance is R / s;
* an entry without finite moments enters by its exact log-density.

Entries without a normal factor use y = h = 0 and R = 1, so that their factor is a constant. The
`remainder` of a site is log r minus the log of its normal density, constants included.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from numpyro.distributions.mixtures import MixtureGeneral, MixtureSameFamily

from .program import Site

# Mean or variance may be infinite. Where they are finite, as for Student's t with three degrees of
# freedom, a normal density underestimates the tail: with an outlier, by a tenth of the evidence.
_HEAVY_TAILED = (
    dist.Cauchy
    | dist.HalfCauchy
    | dist.InverseGamma
    | dist.Levy
    | dist.Pareto
    | dist.StudentT
    | dist.Dagum
)
_WITHOUT_MOMENTS = dist.CategoricalProbs | dist.CategoricalLogits | dist.Unit


class Moments(NamedTuple):
    """The normal density of one observed site, flattened.

    Attributes:
        value: the observation y.
        mean: h(x).
        spread: R(x), a vector of variances or a matrix.
        remainder: log-density of the site minus log N(value; mean, spread), in nats.
    """

    value: Float[Array, " m"]
    mean: Float[Array, " m"]
    spread: Float[Array, " m"] | Float[Array, "m m"]
    remainder: Float[Array, ""]


class Observations(NamedTuple):
    """All observed sites with moments, concatenated, and the log-density of everything else.

    `covariance` is diagonal unless some site is multivariate.
    """

    value: Float[Array, " m"]
    mean: Float[Array, " m"]
    covariance: lx.AbstractLinearOperator
    log_rest: Float[Array, ""]

    def first_covariance(self, num: int) -> lx.AbstractLinearOperator:
        """Return the covariance of the first `num` observations."""
        if isinstance(self.covariance, lx.DiagonalLinearOperator):
            return lx.DiagonalLinearOperator(lx.diagonal(self.covariance)[:num])
        matrix = self.covariance.as_matrix()[:num, :num]
        return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)

    def last(self, num: int) -> "Observations":
        """Return the last `num` observations alone, with `log_rest` 0."""
        start = self.value.size - num
        matrix = self.covariance.as_matrix()[start:, start:]
        covariance = lx.DiagonalLinearOperator(jnp.diagonal(matrix))
        return Observations(self.value[start:], self.mean[start:], covariance, jnp.zeros(()))


def concatenate_moments(found: list[Moments], log_rest: Float[Array, ""]) -> Observations:
    """Concatenate the moments of several sites."""
    empty = jnp.zeros(0)
    value = jnp.concatenate([empty, *(each.value for each in found)])
    mean = jnp.concatenate([empty, *(each.mean for each in found)])
    log_rest = sum((each.remainder for each in found), log_rest)
    if all(each.spread.ndim == 1 for each in found):
        diagonal = jnp.concatenate([empty, *(each.spread for each in found)])
        return Observations(value, mean, lx.DiagonalLinearOperator(diagonal), log_rest)
    blocks = [each.spread if each.spread.ndim == 2 else jnp.diag(each.spread) for each in found]
    matrix = jax.scipy.linalg.block_diag(*blocks)
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    return Observations(value, mean, operator, log_rest)


def log_density(site: Site) -> Float[Array, "..."]:
    """Return the log-density of a site in nats, per batch entry, with its masks and scales."""
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    density = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    return density if site["scale"] is None else site["scale"] * density


def log_prior(site: Site) -> Array:
    """Return the log-density of the value of a site in its own coordinates, without masks."""
    return jnp.sum(_without_masks(site["fn"]).log_prob(site["value"]))


def _without_masks(fn: Distribution) -> Distribution:
    """Remove the masks of a distribution, which do not affect its draws."""
    if isinstance(fn, MaskedDistribution):
        return _without_masks(fn.base_dist)
    if isinstance(fn, Independent):
        return _without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return _without_masks(fn.base_dist).expand(fn.batch_shape)
    return fn


def is_label(site: Site) -> bool:
    """Return whether a site is Bernoulli: its variance vanishes at confident wrong predictions."""
    base, _ = unwrap_masked(site["fn"])
    return isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits)


def visible(site: Site) -> Bool[Array, "..."]:
    """Return which entries of an observation are not masked."""
    _, mask = unwrap_masked(site["fn"])
    return jnp.broadcast_to(mask, full_shape(site))


def moments(site: Site) -> Moments | None:
    """Return the normal density of an observed site; None without usable moments."""
    base, mask = unwrap_masked(site["fn"])
    if isinstance(base, dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return _multivariate(site, base, mask)
    if base.support is None or base.event_dim > 0 or isinstance(base, _WITHOUT_MOMENTS):
        return None
    if _is_heavy_tailed(base):
        return None
    try:
        mean, variance = base.mean, base.variance
    except NotImplementedError:
        return None
    return _univariate(site, base, mean, variance, mask)


def _univariate(
    site: Site, base: Distribution, mean: ArrayLike, variance: ArrayLike, mask: Array
) -> Moments:
    shape, dtype = full_shape(site), jnp.result_type(float)
    scale = jnp.expand_dims(_scale(site), tuple(range(-site["fn"].event_dim, 0)))
    mean, variance, mask, scale = (
        jnp.broadcast_to(x, shape).ravel() for x in (mean, variance, mask, scale)
    )
    value = jnp.broadcast_to(site["value"], shape).ravel()
    usable = active = mask & (scale > 0)
    exact = jnp.zeros(())
    if not isinstance(base, dist.Normal):
        usable = active & jnp.isfinite(mean) & jnp.isfinite(variance) & (variance > 0)
        unusable = (active & ~usable).reshape(shape)
        density = base.expand(shape).mask(unusable).log_prob(value.reshape(shape))
        exact = jnp.sum(jnp.where(unusable, scale.reshape(shape) * density, 0.0))
    scale, variance = jnp.where(usable, scale, 1.0), jnp.where(usable, variance, 1.0)
    # s log N(y; h, R) = log N(y; h, R / s) + (1 - s) / 2 log(2 pi R) - log(s) / 2.
    log_normaliser = jnp.log(2 * jnp.pi * variance)
    remainder = 0.5 * (1 - scale) * log_normaliser - 0.5 * jnp.log(scale)
    remainder = jnp.where(usable, remainder, 0.5 * log_normaliser)
    return Moments(
        value=jnp.where(usable, value, 0).astype(dtype),
        mean=jnp.where(usable, mean, 0.0).astype(dtype),
        spread=(variance / scale).astype(dtype),
        remainder=jnp.sum(remainder) + exact,
    )


def _multivariate(
    site: Site, base: dist.MultivariateNormal | dist.LowRankMultivariateNormal, mask: Array
) -> Moments:
    shape, dtype = full_shape(site), jnp.result_type(float)
    *batch, size = shape
    num = math.prod(batch)
    covariance = jnp.broadcast_to(jnp.asarray(base.covariance_matrix), (*shape, size)).reshape(
        num, size, size
    )
    scale = jnp.broadcast_to(_scale(site), batch).reshape(num)
    # A mask is over the batch, so it applies to whole vectors.
    usable = jnp.broadcast_to(mask, shape).reshape(num, size)[:, 0] & (scale > 0)
    scale = jnp.where(usable, scale, 1.0)
    covariance = jnp.where(usable[:, None, None], covariance, jnp.eye(size))
    value, mean = (
        jnp.where(usable[:, None], jnp.broadcast_to(x, shape).reshape(num, size), 0.0).ravel()
        for x in (site["value"], base.loc)
    )
    log_det = 2 * jnp.sum(
        jnp.log(jnp.diagonal(jnp.asarray(base.scale_tril), axis1=-2, axis2=-1)), axis=-1
    )
    log_det = jnp.broadcast_to(log_det, batch).reshape(num)
    # As in `_univariate`, with log det(2 pi R) and m log(s) for log(2 pi R) and log(s).
    log_normaliser = jnp.where(usable, log_det, 0.0) + size * math.log(2 * math.pi)
    remainder = 0.5 * (1 - scale) * log_normaliser - 0.5 * size * jnp.log(scale)
    remainder = jnp.where(usable, remainder, 0.5 * log_normaliser)
    spread = jax.scipy.linalg.block_diag(*(covariance / scale[:, None, None]))
    return Moments(
        value.astype(dtype), mean.astype(dtype), spread.astype(dtype), jnp.sum(remainder)
    )


def _scale(site: Site) -> Array:
    """Return the factor of `handlers.scale`, over the batch of a site."""
    return jnp.asarray(1.0 if site["scale"] is None else site["scale"])


def full_shape(site: Site) -> tuple[int, ...]:
    """Return the broadcast shape of an observation and its distribution."""
    return np.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape())


def unwrap_masked(fn: Distribution) -> tuple[Distribution, Bool[Array, "..."]]:
    """Return the distribution under `expand`, `to_event` and masks, and the combined mask."""
    mask = jnp.ones((), bool)
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            own = jnp.asarray(fn._mask)
            mask = mask & jnp.expand_dims(own, tuple(range(own.ndim, own.ndim + fn.event_dim)))
        fn = fn.base_dist
    return fn, mask


def _is_heavy_tailed(fn: Distribution) -> bool:
    return any(isinstance(part, _HEAVY_TAILED) for part in _parts(fn))


def _parts(fn: Distribution) -> Iterator[Distribution]:
    """Yield a distribution, and those that it mixes, transforms or truncates."""
    fn, _ = unwrap_masked(fn)
    yield fn
    if isinstance(fn, MixtureSameFamily | MixtureGeneral):
        components = (
            fn.component_distributions
            if isinstance(fn, MixtureGeneral)
            else [fn.component_distribution]
        )
        for component in components:
            yield from _parts(component)
    elif isinstance(base := getattr(fn, "base_dist", None), dist.Distribution):
        yield from _parts(base)
