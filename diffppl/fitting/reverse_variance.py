"""The reverse variance that maximises the ELBO, estimated during `fit`.

A `FittedVariance` holds w_t = E (x_0 - E[x_0 | x_t])^2 on a grid of levels (see
`diffppl.predictions.variance`). At some iterations the minibatch is denoised with the averaged
weights, at times stratified over the chain, and the squared errors enter a moving average in which
the weight of iteration i is proportional to i^5: the estimate depends on about the last third of a
run of any length. Every iteration is used for the first 6,400 data, then fewer, and finally one in
twenty, so that a short run uses enough of them and a long one is 3 to 5 % slower.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..likelihood.elbo import stratified_indices
from ..model import DiffusionModel
from ..predictions.variance import FittedVariance, find_fitted, replace_fitted
from ..processes import GaussianDiffusion

DATA_PER_INTERVAL = 3_200  # data after which the interval between used iterations grows by 1
MAX_INTERVAL = 20
POWER = 5  # the weight of iteration i is proportional to i^POWER


def with_initial_variance(model: DiffusionModel) -> DiffusionModel:
    """Return the model with the initial estimate, if its reverse variance is a fitted one."""
    if not isinstance(model.process, GaussianDiffusion) or find_fitted(model.prediction) is None:
        return model
    start = FittedVariance.start(model.event_shape)
    if model.context_shape is not None and not model.needs_context:
        start = start.beside(start)
    return replace_fitted(model, lambda _: start)


def updated(
    key: Array,
    model: DiffusionModel,
    variance: FittedVariance,
    x_0: Array,
    context: Array | None,
    iteration: Int[Array, ""],
) -> FittedVariance:
    """Return the estimate after an iteration.

    Args:
        key: a typed JAX key.
        model: with the averaged weights, whose errors are estimated.
        variance: the previous estimate.
        x_0, context: the minibatch, in model units.
        iteration: number of completed iterations.
    """
    is_used, share = _use_and_share(iteration, x_0.shape[0])
    other = variance.without_context

    def with_minibatch() -> FittedVariance:
        if other is None:
            return _with_errors(key, model, variance, x_0, context, share)
        if context is None:  # data without contexts
            return variance.beside(_with_errors(key, model, other, x_0, None, share))
        # Half of the minibatch is denoised with its context, the other half without.
        half = max(x_0.shape[0] // 2, 1)
        key_with, key_without = jax.random.split(key)
        conditional = _with_errors(key_with, model, variance, x_0[-half:], context[-half:], share)
        return conditional.beside(_with_errors(key_without, model, other, x_0[:half], None, share))

    return jax.lax.cond(is_used, with_minibatch, lambda: variance)


def _use_and_share(
    iteration: Int[Array, ""], batch_size: int
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Return whether an iteration is used, and the share of its errors in the moving average."""
    interval = jnp.clip(iteration // max(DATA_PER_INTERVAL // batch_size, 1), 1, MAX_INTERVAL)
    # Shares of (p + 1) / (i + p + 1) give weights proportional to i^p; one in each interval.
    share = jnp.minimum((POWER + 1) * interval / (iteration + POWER + 1), 1.0)
    return iteration % interval == 0, share


def _with_errors(
    key: Array,
    model: DiffusionModel,
    variance: FittedVariance,
    x_0: Array,
    context: Array | None,
    share: Array,
) -> FittedVariance:
    """Update the estimate with the squared errors of a minibatch."""
    process, n = model.process, x_0.shape[0]
    key_times, key_noise = jax.random.split(key)
    times = 1 + stratified_indices(key_times, n, 1, process.num_steps)[:, 0]

    def ratio(key: Array, x_0: Array, t: Array, context: Array | None) -> Array:
        x_t = jnp.asarray(process.marginal(x_0, t).sample(key), x_0.dtype)
        squared_error = (x_0 - model.denoise(x_t, t, context)) ** 2
        return squared_error / process.schedule.one_minus_alpha_bar()[t]

    in_axes = (0, 0, 0, None if context is None else 0)
    ratios = jax.vmap(ratio, in_axes)(jax.random.split(key_noise, n), x_0, times, context)
    return variance.updated(process.schedule.log_snr()[times], ratios, share)
