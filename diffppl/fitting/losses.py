"""Losses that `fit` minimises.

| loss           | value                                                  | for                   |
| -------------- | ------------------------------------------------------ | --------------------- |
| `ELBOLoss`     | minus the ELBO K of `likelihood`, nats per event       | every model           |
| `WeightedLoss` | sum_{t=2..T} w_t E KL_t, with user-defined weights     | real data             |
| `SimpleLoss`   | mean over t = 2..T of the squared error of the noise   | real data             |

`ContextDropout(loss)` is one of them with the context of part of each minibatch removed.

Here KL_t = KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)). Only the ELBO bounds log p(x_0), and only
the ELBO is an objective for the noise levels, so a learned schedule requires it.

To add a loss, subclass `AbstractLoss`, mark it `typing.final`, and add a row to the tests'
registry.

References:
    Sohl-Dickstein et al. 2015, section 2.4 (ELBO); Ho et al. 2020, equation 14 (simple); Ho and
    Salimans 2022, section 3.2 (context dropout).
"""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..checks.arguments import check_fields, check_float
from ..checks.arrays import as_double
from ..likelihood.elbo import AbstractSteps, SampledSteps, bound
from ..model import DiffusionModel
from ..predictions.variance import LowerVariance, replace_fitted
from ..processes.support import check_real
from ..schedules import Learned

__all__ = ["AbstractLoss", "ContextDropout", "ELBOLoss", "SimpleLoss", "WeightedLoss"]


class AbstractLoss(eqx.Module):
    """A scalar training objective. Subclasses define its label, its requirements and its value."""

    def __check_init__(self) -> None:
        check_fields(self)

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Name and unit, for the axis of a plot."""

    @abc.abstractmethod
    def check(self, model: DiffusionModel) -> None:
        """Raise a `ValueError` if the model cannot be fitted with this loss."""

    @abc.abstractmethod
    def __call__(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> Float[Array, ""]:
        """Estimate the loss from a minibatch in *model* units: unbiased, pure, differentiable."""


@final
class ELBOLoss(AbstractLoss):
    """The negative evidence lower bound, in nats per event in the user's units.

    Args:
        steps: estimator of the sum over the steps of the chain.
    """

    steps: AbstractSteps = SampledSteps(1)

    @property
    def label(self) -> str:
        return "negative ELBO (nats per event)"

    def check(self, model: DiffusionModel) -> None:
        """Accept every model."""

    def __call__(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> Float[Array, ""]:
        return -bound(key, model, x_0, context, self.steps).value


def _weights(weights: ArrayLike) -> Array:
    values = as_double("weights", weights)
    if values.ndim != 1 or not np.all(values >= 0):
        raise ValueError("weights must be a vector of finite numbers, none of them negative.")
    return jnp.asarray(values, dtype=float)


@final
class WeightedLoss(AbstractLoss):
    """A weighted sum of the KL divergences of the reverse steps, in nats per event.

    Args:
        weights: non-negative, one for each of t = 2..T, shape `(num_steps - 1,)`. With weights of
            1 the loss is the negative ELBO up to constants.
        steps: estimator of the sum over the steps of the chain.
    """

    weights: Float[Array, " num_steps_less_one"] = eqx.field(converter=_weights)
    steps: AbstractSteps = SampledSteps(1)

    @property
    def label(self) -> str:
        return "weighted divergence (nats per event)"

    def check(self, model: DiffusionModel) -> None:
        """Require real data, a fixed schedule and a weight for each step."""
        _check_real_and_fixed(self, model)
        if self.weights.shape != (model.num_steps - 1,):
            raise ValueError(
                f"loss=WeightedLoss(weights) has weights of shape {self.weights.shape}; the model "
                f"has num_steps={model.num_steps}, so it needs one for each of t = 2..T, shape "
                f"{(model.num_steps - 1,)}."
            )

    def __call__(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> Float[Array, ""]:
        # The terms of the bound are -KL_t.
        return -self.weights @ self.steps.sum_terms(key, model, x_0, context)[1]


@final
class SimpleLoss(AbstractLoss):
    """The mean squared error of the noise, per coordinate, averaged over t = 2..T.

    Each divergence is re-weighted so that |eps - E[eps | x_t]|^2 has weight 1 for every type of
    prediction. Compared with the ELBO, the weight of steps with much noise is larger: samples often
    look better, and the bound is worse. A learned variance is trained too, by the divergences with
    the weights of a raw output of zero; a fitted variance does not enter.

    Args:
        steps: estimator of the sum over the steps of the chain.
    """

    steps: AbstractSteps = SampledSteps(1)

    @property
    def label(self) -> str:
        return "mean squared error of the noise"

    def check(self, model: DiffusionModel) -> None:
        """Require real data and a fixed schedule with alpha_bar_T > 0."""
        _check_real_and_fixed(self, model)
        if float(model.process.schedule.alpha_bar()[-1]) == 0:
            raise ValueError(
                "loss=SimpleLoss() gives no weight to a last step with alpha_bar_T = 0, so the "
                "network would not be trained on it. Use losses.ELBOLoss(), or another schedule."
            )

    def __call__(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> Float[Array, ""]:
        # A fitted variance becomes the lower one, with which KL_t is the squared error over w_t.
        model = replace_fitted(model, lambda _: LowerVariance())
        per_step = self.steps.sum_terms(key, model, x_0, context)[1]
        squared_errors = -noise_weights(model) * per_step
        return jnp.mean(squared_errors) / math.prod(model.event_shape)


def _rate(rate: object) -> float:
    return check_float("rate", rate, 0.0, 1.0)


@final
class ContextDropout(AbstractLoss):
    """Another loss, with the context of part of each minibatch removed.

    The network then learns p(x_0) and p(x_0 | context), as required by `model()` and
    `guided(model, w)`. A fixed share of the minibatch has no context, and the two parts have the
    exact weights `rate` and 1 - `rate`, so the objective does not depend on the batch size.

    Args:
        loss: the loss of both parts.
        rate: the weight of the part without context, between 0 and 1.

    Raises:
        ValueError: `rate` is not between 0 and 1, or (from `fit`) the network requires a context.

    Example:
        >>> loss = dp.losses.ContextDropout(dp.losses.SimpleLoss(), rate=0.2)
        >>> result = dp.fit(key, model, data, context=context, loss=loss, num_iterations=5_000)
    """

    loss: AbstractLoss = ELBOLoss()
    rate: float = eqx.field(static=True, default=0.1, converter=_rate)

    @property
    def label(self) -> str:
        return self.loss.label

    def check(self, model: DiffusionModel) -> None:
        """Require a network with an optional context, and what `loss` requires."""
        if model.context_shape is None or model.needs_context:
            raise ValueError(
                "loss=ContextDropout requires a network with an optional context, such as "
                "networks.OptionalContext(network, context_shape)."
            )
        self.loss.check(model)

    def __call__(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> Float[Array, ""]:
        n = x_0.shape[0]
        if context is None or n < 2:
            raise ValueError(
                "loss=ContextDropout needs contexts, and batch_size=2 or more: it removes the "
                "context of some data and keeps that of others."
            )
        # At least one datum in each part; the weights below correct for the rounding.
        k = min(max(round(self.rate * n), 1), n - 1)
        key_with, key_without = jax.random.split(key)
        conditional = self.loss(key_with, model, x_0[k:], context[k:])
        unconditional = self.loss(key_without, model, x_0[:k], None)
        return (1 - self.rate) * conditional + self.rate * unconditional


def noise_weights(model: DiffusionModel) -> Float[Array, " num_steps_less_one"]:
    """Return w_t for t = 2..T such that w_t KL_t is the squared error of the noise.

    The means of the two kernels differ by b_t (E[x_0 | x_t] - x_0), which is
    b_t sqrt((1 - alpha_bar_t) / alpha_bar_t) times the error of the noise; a reverse variance
    sigma_t^2 then gives w_t = 2 sigma_t^2 alpha_bar_t / (b_t^2 (1 - alpha_bar_t)).
    """
    process, prediction = model.process, model.prediction
    signal, noise = process.schedule.alpha_bar(), process.schedule.one_minus_alpha_bar()
    zero = jnp.zeros(())
    raw = jnp.zeros(prediction.output_shape(process, ()))  # the same for every coordinate

    def weight(t: Array) -> Array:
        kernel = process.reverse(zero, prediction.estimate(process, raw, zero, t), t)
        # b_t is the coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        b = process.posterior(zero, jnp.ones(()), t).mean
        return 2 * kernel.variance * signal[t] / (b**2 * noise[t])

    return jax.vmap(weight)(jnp.arange(2, model.num_steps + 1))


def _check_real_and_fixed(loss: AbstractLoss, model: DiffusionModel) -> None:
    name = type(loss).__name__
    check_real(f"loss={name}", model.process, "; use losses.ELBOLoss()")
    if isinstance(model.process.schedule, Learned):
        raise ValueError(
            f"loss={name} cannot learn a schedule: re-weighted divergences are no objective for "
            "the noise levels. Use losses.ELBOLoss(), or a fixed schedule."
        )
