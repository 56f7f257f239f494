"""The mean and the variance of observed sites, side by side, as twists on real data need them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpyro.distributions as dist
from jaxtyping import Array, Float

from .program import unwrapped


class Observations(NamedTuple):
    """The observed sites that have a mean and a variance, flattened side by side.

    `value` and `mean` have shape `(m,)`, `covariance` is `(m, m)`, diagonal unless some site is
    multivariate; `log_rest` is the log-density of everything else the program says.
    """

    value: Float[Array, " m"]
    mean: Float[Array, " m"]
    covariance: lx.AbstractLinearOperator
    log_rest: Float[Array, ""]


_WITHOUT_MOMENTS = dist.CategoricalProbs | dist.CategoricalLogits

Moments = tuple[Array, Array, Array]
"""Value, mean, and variances (a vector) or covariance (a matrix)."""


def side_by_side(found: list[Moments], log_rest: Float[Array, ""]) -> Observations:
    """Several sites' moments as one."""
    empty = jnp.zeros(0)
    value = jnp.concatenate([empty, *(value for value, _, _ in found)])
    mean = jnp.concatenate([empty, *(mean for _, mean, _ in found)])
    spreads = [spread for _, _, spread in found]
    if all(spread.ndim == 1 for spread in spreads):
        diagonal = jnp.concatenate([empty, *spreads])
        covariance: lx.AbstractLinearOperator = lx.DiagonalLinearOperator(diagonal)
    else:
        blocks = [spread if spread.ndim == 2 else jnp.diag(spread) for spread in spreads]
        matrix = jax.scipy.linalg.block_diag(*blocks)
        covariance = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    return Observations(value, mean, covariance, log_rest)


def log_prob(site: dict[str, Any]) -> Float[Array, ""]:
    """Log-density of one site of a trace, with its scale (subsampling) counted."""
    fn, value, intermediates = site["fn"], site["value"], site["intermediates"]
    density = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    scale = 1.0 if site["scale"] is None else site["scale"]
    return jnp.sum(scale * density)


def is_label(site: dict[str, Any]) -> bool:
    """Whether a site is a Bernoulli, whose variance is no guide where it is sure and wrong."""
    return isinstance(unwrapped(site["fn"]), dist.BernoulliProbs | dist.BernoulliLogits)


def moments(site: dict[str, Any]) -> Moments | None:
    """Value, mean and spread of an observed site, flattened; None if it has no such moments.

    Only sites on the whole real line or with finite first two moments qualify; masks and plates
    that rescale are left to the exact log-density.
    """
    fn = site["fn"]
    if site["scale"] is not None or isinstance(fn, dist.MaskedDistribution | dist.Unit):
        return None
    base: Any = unwrapped(fn)
    shape = fn.shape()
    if isinstance(base, dist.MultivariateNormal):
        covariance: Any = base.covariance_matrix
        mean, matrices = base.loc, jnp.broadcast_to(covariance, (*shape, shape[-1]))
        spread = jax.scipy.linalg.block_diag(*matrices.reshape(-1, shape[-1], shape[-1]))
    elif isinstance(base, dist.StudentT | dist.Cauchy):
        # The inverse Fisher information of the location: finite however heavy the tails.
        df = jnp.asarray(base.df if isinstance(base, dist.StudentT) else 1.0)
        mean = base.loc
        spread = _flat(jnp.asarray(base.scale) ** 2 * (df + 3) / (df + 1), shape)
    elif base.support is None or base.event_dim > 0 or isinstance(base, _WITHOUT_MOMENTS):
        return None
    else:
        try:
            mean, spread = base.mean, _flat(base.variance, shape)
        except NotImplementedError:
            return None
    mean = _flat(mean, shape)
    return _flat(site["value"], shape).astype(mean.dtype), mean, spread


def _flat(value: Any, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(jnp.asarray(value), shape).reshape(-1)
