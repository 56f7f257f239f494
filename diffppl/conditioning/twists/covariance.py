"""Models of Cov[x_0 | x_t] for `MomentMatching`."""

import abc
from collections.abc import Callable
from typing import ClassVar, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ...checks.arguments import as_float, short_repr
from .base import INFLATION


class AbstractCovariance(eqx.Module):
    """A model of C_t = Cov[x_0 | x_t]."""

    is_jacobian: eqx.AbstractClassVar[bool]
    """Whether C_t is `factor` times the denoiser's Jacobian."""
    inflation: eqx.AbstractVar[Float[Array, ""]]
    """Variance added for learned networks, as a fraction of 1 - alpha_bar_t."""

    def __repr__(self) -> str:
        return short_repr(self)

    @abc.abstractmethod
    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        """Return C_t times a vector.

        Args:
            vector: a vector over all coordinates.
            pull_back: the vector-Jacobian product of E[x_0 | x_t] with respect to x_t.
            factor: (1 - alpha_bar_t) / sqrt(alpha_bar_t) of each coordinate.
            noise: 1 - alpha_bar_t of each coordinate.
        """


@final
class Tweedie(AbstractCovariance):
    """Tweedie's formula: (1 - alpha_bar_t) / sqrt(alpha_bar_t) dE[x_0 | x_t] / dx_t.

    Exact for an exact denoiser, at one vector-Jacobian product per observed number, or per
    iteration of conjugate gradients where many are observed. A learned denoiser's Jacobian is
    neither symmetric nor positive, so its positive symmetric part is used. Where it underestimates
    Var[x_0 | x_t], precise observations would leave only the few particles that match them early,
    so a fraction of the noise variance is added.

    Args:
        inflation: that fraction, of 1 - alpha_bar_t. No inflation for analytic denoisers.
    """

    inflation: Float[Array, ""]
    is_jacobian: ClassVar[bool] = True

    def __init__(self, inflation: ArrayLike = INFLATION) -> None:
        self.inflation = as_float(inflation)

    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        del noise
        return factor * pull_back(vector)


@final
class Isotropic(AbstractCovariance):
    """r_t^2 I with r_t^2 = v (1 - alpha_bar_t) / (alpha_bar_t v + 1 - alpha_bar_t).

    Exact for normal data with independent coordinates of variance v = `variance` (model units;
    `fit` scales data to 1). Costs one vector-Jacobian product per step for any number of
    observations.

    References:
        Song et al. 2023 (PiGDM), there with variance 1.
    """

    variance: Float[Array, ""]
    is_jacobian: ClassVar[bool] = False

    def __init__(self, variance: ArrayLike = 1.0) -> None:
        self.variance = as_float(variance)

    @property
    def inflation(self) -> Float[Array, ""]:
        return jnp.zeros(())  # no Jacobian is used

    def times(
        self,
        vector: Float[Array, " d"],
        pull_back: Callable[[Array], Array],
        factor: Float[Array, " d"],
        noise: Float[Array, " d"],
    ) -> Float[Array, " d"]:
        del pull_back, factor
        # r_t^2 with alpha_bar_t = 1 - noise.
        return self.variance * noise / ((1 - noise) * self.variance + noise) * vector
