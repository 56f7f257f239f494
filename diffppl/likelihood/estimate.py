"""The result of an estimator of log p(x_0)."""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


@final
class LogEstimate(eqx.Module):
    """An estimate of log p(x_0), averaged over data, in nats.

    Attributes:
        per_example: an estimate for each datum, shape `(n,)`.
        per_example_error: Monte Carlo standard error of each estimate, conditional on its datum;
            0 for a deterministic estimator, NaN if it cannot be estimated.
    """

    per_example: Float[Array, " n"]
    per_example_error: Float[Array, " n"]

    @property
    def value(self) -> Float[Array, ""]:
        """Mean over the data, in nats per event."""
        return jnp.mean(self.per_example)

    @property
    def standard_error(self) -> Float[Array, ""]:
        """Standard error of `value`, over data and Monte Carlo noise; NaN if n = 1."""
        n = self.per_example.size
        return jnp.std(self.per_example, ddof=1) / math.sqrt(n) if n > 1 else jnp.array(jnp.nan)

    @property
    def monte_carlo_error(self) -> Float[Array, ""]:
        """Standard error of `value` from Monte Carlo noise alone, conditional on the data."""
        return jnp.sqrt(jnp.sum(self.per_example_error**2)) / self.per_example.size

    @property
    def bits(self) -> Float[Array, ""]:
        """`value` in bits per event."""
        return self.value / math.log(2)

    def __repr__(self) -> str:
        return (
            f"LogEstimate({float(self.value):.3f} ± {float(self.standard_error):.3f} nats, "
            f"n={self.per_example.size}, Monte Carlo error {float(self.monte_carlo_error):.3f})"
        )
