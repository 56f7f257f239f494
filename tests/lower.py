"""Models of normal data whose prior depends on the number of steps, by the lower variance.

The exact chain of normal data is right at any number of steps, so that a test that has to tell
chains apart needs one that is not.
"""

from typing import Any

import jax
import numpy as np

import diffppl as dp


class MeanOnly(dp.denoisers.AbstractDenoiser):
    """E[x_0 | x_t] of a known answer, and nothing of its variance."""

    network: dp.denoisers.AbstractDenoiser

    def __call__(self, x_t: jax.Array, t: Any, context: jax.Array | None) -> jax.Array:
        return self.network(x_t, t, context)[0]


def lower_model(schedule: Any, mean: Any, variance: Any, **options: Any) -> dp.DiffusionModel:
    """The moments of its x_0 are `chain_oracles.gaussian_chain_moments`."""
    return dp.DiffusionModel(
        dp.GaussianDiffusion(schedule),
        MeanOnly(dp.denoisers.Gaussian(schedule, mean, variance)),
        np.shape(mean),
        prediction=dp.predictions.Data(dp.predictions.LowerVariance()),
        **options,
    )
