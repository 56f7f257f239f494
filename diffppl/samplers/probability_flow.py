"""Sampling by the probability flow, deterministic in x_T; see `diffppl.model.probability_flow`."""

from typing import ClassVar, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..model import DiffusionModel
from ..model.probability_flow import Integrator, noise_to_data, noise_to_path
from .base import AbstractSampler


@final
class ProbabilityFlow(AbstractSampler):
    """Sampling of real data by the probability-flow ODE, solved with adaptive steps.

    The draws have the density `likelihood.flow_log_density`, to the integrator's tolerance. The
    final step is that of the flow, x_0 = x_1 / sqrt(alpha_bar_1), which keeps the noise of level 1.
    A draw takes a few hundred network calls, almost independently of the chain's length.

    Args:
        integrator: the solver of the ODE and its tolerances.
    """

    supports_discrete: ClassVar[bool] = False
    integrator: Integrator = Integrator()

    def draw(
        self,
        key: Array,
        model: DiffusionModel,
        x_T: Array,
        context: Array | None,
        *,
        keep_path: bool,
    ) -> tuple[Array, Array | None]:
        del key
        path = None
        if keep_path:
            path = noise_to_path(model, x_T, context, integrator=self.integrator)
            # `noise_to_path` has the time just before the event, samplers have it first.
            path = jnp.moveaxis(path, x_T.ndim - len(model.event_shape), 0)
            x_0 = path[-1]
        else:
            x_0 = noise_to_data(model, x_T, context, integrator=self.integrator)
        x_0 = eqx.error_if(
            x_0,
            jnp.any(jnp.isnan(x_0)),
            "ProbabilityFlow failed to solve its ODE: raise the integrator's max_steps or "
            "tolerances, and check that the network's output is finite.",
        )
        return x_0, path
