"""Var[x_0 | x_t], and with it the variance of the reverse kernel.

With a model's estimate D of E[x_0 | x_t] the reverse kernel is N(b_t D + c_t x_t, s^2). Its term in
the evidence lower bound is minus (v_t is the variance of q(x_{t-1} | x_t, x_0))

    E KL = E[log(s^2 / v_t) + (v_t + b_t^2 (x_0 - D)^2) / s^2 - 1] / 2,

whose minimum over all s^2 that do not depend on x_t is

    s^2 = v_t + b_t^2 w_t,      w_t = E (x_0 - D)^2,

coordinate by coordinate and level by level, with expectations over data and noise (Bao et al.
2022, theorem 1 and section 4; where D is exact, w_t is the mean of Var[x_0 | x_t]). So w_t is
estimated by a mean of squared errors, not learned by gradient descent. Its ratio to
1 - alpha_bar_t is a smooth function of log signal-to-noise, 1 at both ends for smooth densities of
unit variance. `FittedVariance` stores that function on a grid, so that it is also defined for
respaced chains and learned schedules.

| variance         | variance of x_0 / (1 - alpha_bar_t)                                        |
| ---------------- | -------------------------------------------------------------------------- |
| `FittedVariance` | w_t / (1 - alpha_bar_t), estimated by `fit`; 1 in a model that is unfitted |
| `LearnedVariance`| exp(raw), from a second channel of the network: it may depend on x_t       |
| `UpperVariance`  | 1: the reverse kernel has variance beta_t                                  |
| `LowerVariance`  | 0: the reverse kernel has variance v_t                                     |

References:
    Bao, Li, Zhu and Zhang 2022, "Analytic-DPM"; Ho et al. 2020, section 3.2 (upper and lower).
"""

import abc
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

LEVELS = np.linspace(-16.0, 16.0, 65)
"""Log signal-to-noise ratios of the grid, 0.5 nats apart: noise amplitudes from 3e-4 to 3e3."""
FAR_WEIGHT = 1e-6
"""Weight of an error at all other levels, so that levels without errors have the nearest ratio."""


class AbstractVariance(eqx.Module):
    """A model of Var[x_0 | x_t]."""

    @property
    @abc.abstractmethod
    def channels(self) -> int:
        """Number of channels of the raw output besides the mean's: 0 or 1."""

    @abc.abstractmethod
    def variance(self, raw: Array, log_snr: Array) -> Float[Array, "..."]:
        """Return Var[x_0 | x_t] of one event, from the raw variance channel and the level of t."""


@final
class LowerVariance(AbstractVariance):
    """Var[x_0 | x_t] = 0: the reverse kernel has the variance of q(x_{t-1} | x_t, x_0).

    Draws are underdispersed with few steps: for N(0, 1) and the exact mean their standard deviation
    is .80 at 20 steps and .96 at 100.
    """

    @property
    def channels(self) -> int:
        return 0

    def variance(self, raw: Array, log_snr: Array) -> Float[Array, "..."]:
        del log_snr
        return jnp.zeros_like(raw)


@final
class UpperVariance(AbstractVariance):
    """Var[x_0 | x_t] of unit-variance data: the reverse kernel has variance beta_t."""

    @property
    def channels(self) -> int:
        return 0

    def variance(self, raw: Array, log_snr: Array) -> Float[Array, "..."]:
        # 1 - alpha_bar_t = sigmoid(-log_snr).
        return jnp.broadcast_to(jax.nn.sigmoid(-log_snr), raw.shape)


@final
class LearnedVariance(AbstractVariance):
    """Var[x_0 | x_t] = (1 - alpha_bar_t) exp(raw), so that raw = 0 is the upper variance.

    Never below the lower bound, and valid at any number of steps, because it is a variance of x_0
    and not of one kernel.
    """

    @property
    def channels(self) -> int:
        return 1

    def variance(self, raw: Array, log_snr: Array) -> Float[Array, "..."]:
        return jax.nn.sigmoid(-log_snr) * jnp.exp(raw)


@final
class FittedVariance(AbstractVariance):
    """The mean squared error of E[x_0 | x_t] at each level, which `fit` estimates: the default.

    Of all variances that do not depend on x_t it has the largest evidence lower bound (see the
    module's docstring). It requires no channel of the network, and has no gradient.

    Attributes:
        errors: means over data and noise of (x_0 - E[x_0 | x_t])^2 / (1 - alpha_bar_t), weighted
            by the proximity of the level to each of `LEVELS`, shape `(65, *event_shape)`; None in
            an unfitted model.
        weights: the means of those weights, shape `(65,)`.
        without_context: the variance of the model without a context, if its context is optional.
    """

    errors: Float[Array, "levels ..."] | None = None
    weights: Float[Array, " levels"] | None = None
    without_context: "FittedVariance | None" = None

    @property
    def channels(self) -> int:
        return 0

    def variance(self, raw: Array, log_snr: Array) -> Float[Array, "..."]:
        variance = jax.nn.sigmoid(-log_snr) * self.ratio(log_snr)
        # The table is a moving average, not a parameter.
        return jnp.broadcast_to(jax.lax.stop_gradient(variance), raw.shape)

    def ratio(self, log_snr: Float[Array, ""]) -> Float[Array, "..."]:
        """Return Var[x_0 | x_t] / (1 - alpha_bar_t), linear between the levels of the grid."""
        if self.errors is None or self.weights is None:
            return jnp.ones(())
        weights = self.weights.reshape(-1, *[1] * (self.errors.ndim - 1))
        return jnp.tensordot(_linear_weights(log_snr), self.errors / weights, axes=1)

    @classmethod
    def start(cls, event_shape: tuple[int, ...]) -> "FittedVariance":
        """Return the initial moving averages, with a ratio of 1."""
        return cls(jnp.ones((len(LEVELS), *event_shape)), jnp.ones(len(LEVELS)))

    def updated(
        self, log_snr: Float[Array, " n"], ratios: Float[Array, "n ..."], share: Array
    ) -> "FittedVariance":
        """Update the moving averages with `n` squared errors.

        Args:
            log_snr: the levels of the errors.
            ratios: (x_0 - E[x_0 | x_t])^2 / (1 - alpha_bar_t), shape `(n, *event_shape)`.
            share: weight of the errors in the new averages.
        """
        assert self.errors is not None
        assert self.weights is not None
        # Interpolation weights, plus a small weight that decays with the distance in log-SNR.
        distance = jnp.abs(log_snr[:, None] - jnp.asarray(LEVELS, log_snr.dtype))
        near = _linear_weights(log_snr) + FAR_WEIGHT * jnp.exp(-distance)

        def average(old: Array, values: Array) -> Array:
            return (1 - share) * old + share * jnp.tensordot(near.T, values, axes=1) / len(values)

        weights = average(self.weights, jnp.ones_like(log_snr))
        return FittedVariance(average(self.errors, ratios), weights, self.without_context)

    def beside(self, without_context: "FittedVariance") -> "FittedVariance":
        """Return this variance, with another for the model evaluated without its context."""
        return FittedVariance(self.errors, self.weights, without_context)

    def pooled(self) -> "FittedVariance":
        """Average over coordinates to one number per level, for networks applied to larger events.

        Example:
            >>> variance = fitted.prediction.variance.pooled()
            >>> larger = dp.DiffusionModel(
            ...     fitted.process,
            ...     fitted.network.resized((64, 64)),
            ...     (64, 64),
            ...     prediction=dp.predictions.Velocity(variance),
            ...     scaling=fitted.scaling,
            ... )
        """
        if self.errors is None:
            return self
        other = None if self.without_context is None else self.without_context.pooled()
        errors = jnp.mean(self.errors, axis=tuple(range(1, self.errors.ndim)))
        return FittedVariance(errors, self.weights, other)


def _linear_weights(log_snr: Array) -> Float[Array, "... levels"]:
    """Weight of each of `LEVELS` in the linear interpolation at a level."""
    levels = jnp.asarray(LEVELS, log_snr.dtype)
    inside = jnp.clip(log_snr, levels[0], levels[-1])[..., None]
    return jnp.maximum(1 - jnp.abs(inside - levels) / (levels[1] - levels[0]), 0)


# Fitted variances in a model --------------------------------------------------------------------


def find_fitted(tree: PyTree) -> FittedVariance | None:
    """Return the `FittedVariance` in a prediction or model; None if there is none."""
    nodes = jax.tree.leaves(tree, is_leaf=_is_fitted)
    return next((node for node in nodes if _is_fitted(node)), None)


def replace_fitted(tree: PyTree, replace: Callable[[FittedVariance], PyTree]) -> PyTree:
    """Apply `replace` to the `FittedVariance` in a prediction or model."""
    return jax.tree.map(
        lambda node: replace(node) if _is_fitted(node) else node, tree, is_leaf=_is_fitted
    )


def only_fitted(tree: PyTree) -> PyTree:
    """Replace every leaf of a model by None, except its `FittedVariance`."""
    return jax.tree.map(lambda node: node if _is_fitted(node) else None, tree, is_leaf=_is_fitted)


def without_context(variance: FittedVariance) -> FittedVariance:
    """Return the variance of a model evaluated without its context."""
    return variance if variance.without_context is None else variance.without_context


def _is_fitted(node: object) -> bool:
    return isinstance(node, FittedVariance)
