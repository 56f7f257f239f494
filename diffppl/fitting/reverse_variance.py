"""The reverse variance with the largest bound on the data, estimated while `fit` runs.

A `FittedVariance` holds w_t = E (x_0 - E[x_0 | x_t])^2 on a grid of levels (see
`diffppl.predictions.variance`). In some of the iterations the minibatch is denoised with the averaged weights,
at levels spread evenly over the chain, and the squared errors enter a moving average in which those
of iteration i weigh as i^5: about the last third of a run counts, however long it is, and its start
is forgotten. Every iteration is used until 6,400 data were seen, then fewer, and in the end one in
twenty, so that a short run has enough of them, and a long one becomes 3 to 5 % slower.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..likelihood.elbo import stratified_indices
from ..model import DiffusionModel
from ..predictions.variance import FittedVariance, find_fitted, replace_fitted
from ..processes import GaussianDiffusion

ENOUGH, MAX_APART, POWER = 3_200, 20, 5


def with_start(model: DiffusionModel) -> DiffusionModel:
    """The model with the estimate's beginning, if its reverse variance is a fitted one."""
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
    """The estimate after an iteration.

    Args:
        key: a typed JAX key.
        model: with the weights to be judged.
        variance: the estimate before.
        x_0, context: the iteration's minibatch, in model units.
        iteration: how many were done before.
    """
    is_used, share = _is_used(iteration, x_0.shape[0])
    other = variance.without_context

    def observed() -> FittedVariance:
        if other is None:
            return _observed(key, model, variance, x_0, context, share)
        if context is None:  # data without any
            return variance.beside(_observed(key, model, other, x_0, None, share))
        # Half of the minibatch each: with its context, and without.
        half = max(x_0.shape[0] // 2, 1)
        key_with, key_without = jax.random.split(key)
        given = _observed(key_with, model, variance, x_0[-half:], context[-half:], share)
        return given.beside(_observed(key_without, model, other, x_0[:half], None, share))

    return jax.lax.cond(is_used, observed, lambda: variance)


def _is_used(
    iteration: Int[Array, ""], batch_size: int
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether an iteration's errors are looked at, and their share of the average then."""
    apart = jnp.clip(iteration // max(ENOUGH // batch_size, 1), 1, MAX_APART)
    share = jnp.minimum((POWER + 1) * apart / (iteration + POWER + 1), 1.0)
    return iteration % apart == 0, share


def _observed(
    key: Array,
    model: DiffusionModel,
    variance: FittedVariance,
    x_0: Array,
    context: Array | None,
    share: Array,
) -> FittedVariance:
    process, n = model.process, x_0.shape[0]
    key_times, key_noise = jax.random.split(key)
    times = 1 + stratified_indices(key_times, n, 1, process.num_steps)[:, 0]

    def ratio(key: Array, x_0: Array, t: Array, context: Array | None) -> Array:
        x_t = jnp.asarray(process.marginal(x_0, t).sample(key), x_0.dtype)
        return (x_0 - model.denoise(x_t, t, context)) ** 2 / process.schedule.one_minus_alpha_bar()[
            t
        ]

    in_axes = (0, 0, 0, None if context is None else 0)
    ratios = jax.vmap(ratio, in_axes)(jax.random.split(key_noise, n), x_0, times, context)
    return variance.updated(process.schedule.log_snr()[times], ratios, share)
