"""The probability flow as a sampler: x_T alone decides x_0. See `diffppl.samplers.flow_ode`."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..model import DiffusionModel
from .base import AbstractSampler, require_real
from .flow_ode import Integrator, noise_to_data, noise_to_path


@final
class ProbabilityFlow(AbstractSampler):
    """Real data by a differential equation, solved with adaptive steps.

    Draws exactly what `likelihood.flow_log_density` is the density of, to the integrator's
    tolerance. The last step is x_0 = x_1 / sqrt(alpha_bar_1), the flow's own, which keeps the noise
    of level 1. It takes a few hundred network calls a draw, hardly more for longer chains.

    Args:
        integrator: how the differential equation is solved.
    """

    integrator: Integrator = Integrator()

    def prepare(self, model: DiffusionModel) -> DiffusionModel:
        """The model itself."""
        require_real(self, model)
        return model

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
            path = jnp.moveaxis(path, x_T.ndim - len(model.event_shape), 0)
            x_0 = path[-1]
        else:
            x_0 = noise_to_data(model, x_T, context, integrator=self.integrator)
        x_0 = eqx.error_if(
            x_0,
            jnp.any(jnp.isnan(x_0)),
            "ProbabilityFlow could not solve its equation: raise the integrator's max_steps or "
            "tolerances, and see that the network's output is finite.",
        )
        return x_0, path
