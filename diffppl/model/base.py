"""The interface of a model, against which the programs and the distribution of one are typed.

A model estimates x_0 from x_t. Its reverse kernels follow from the estimate and the process, and
the conversion between units from the scaling. `DiffusionModel` is the implementation.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks.arguments import check_time
from ..processes import AbstractProcess
from ..processes.base import Time
from .scaling import Scaling


class AbstractModel(eqx.Module):
    """The reverse chain of one event. Subclasses implement `estimate` and describe its context."""

    process: eqx.AbstractVar[AbstractProcess]
    scaling: eqx.AbstractVar[Scaling | None]
    event_shape: eqx.AbstractVar[tuple[int, ...]]
    context_shape: eqx.AbstractVar[tuple[int, ...] | None]

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the chain."""
        return self.process.num_steps

    @property
    @abc.abstractmethod
    def needs_context(self) -> bool:
        """Whether the network requires a context (see `networks.OptionalContext`)."""

    @property
    @abc.abstractmethod
    def num_labels(self) -> int | None:
        """Number of classes if the context is a label (see `num_classes`), else None."""

    # Estimates and kernels --------------------------------------------------------------------

    @abc.abstractmethod
    def estimate(self, x_t: Array, t: Time, context: Array | None = None) -> PyTree:
        """Return the network's estimate of x_0 from x_t, of the type of the process.

        Args:
            x_t: shape `(*batch, *event_shape)`, model units.
            t: integer in 1..T.
            context: shape `(*context_batch, *context_shape)`, broadcast against the batch; user's
                units.
        """

    def denoise(self, x_t: Array, t: Time, context: Array | None = None) -> Float[Array, "..."]:
        """Return the model's E[x_0 | x_t], in model units.

        For bits it is P(x_0 = 1 | x_t), and for categories probabilities on a trailing axis.
        """
        return self.process.mean(self.estimate(x_t, t, context))

    def reverse_kernel(
        self, x_t: Array, t: Time, context: Array | None = None
    ) -> dist.Distribution:
        """Return p(x_{t-1} | x_t) in model units, for a concrete t >= 1 or a traced t >= 2.

        At `t=1` it is the final step, which requires a concrete `t`.
        """
        t = check_time(t, self.num_steps)
        estimate = self.estimate(x_t, t, context)
        if isinstance(t, int) and t == 1:
            return self.as_event(self.process.final_step(x_t, estimate))
        return self.as_event(self.process.reverse(x_t, estimate, t))

    def as_event(self, kernel: dist.Distribution) -> dist.Distribution:
        """Reinterpret the coordinates of a kernel as the dimensions of one event."""
        return kernel.to_event(len(self.event_shape) - kernel.event_dim)

    # From and to the user's units --------------------------------------------------------------

    def to_model(self, x_0: ArrayLike) -> Array:
        """Convert data from the user's units to the chain's; NumPy data in double precision."""
        # Data outside JAX stay in NumPy until they are centred, as float32 would round them.
        x_0 = x_0 if isinstance(x_0, jax.Array) else np.asarray(x_0)
        return jnp.asarray(x_0 if self.scaling is None else self.scaling.to_model(x_0))

    def to_user(self, x_0: Array) -> Array:
        """Convert data from the chain's units to the user's."""
        return x_0 if self.scaling is None else self.scaling.to_user(x_0)

    def in_user_units(self, kernel: dist.Distribution) -> dist.Distribution:
        """Transform a distribution in model units to one in the user's units."""
        if self.scaling is None:
            return kernel
        return dist.TransformedDistribution(kernel, self.scaling.transforms(self.event_shape))

    def log_abs_det(self) -> Float[Array, ""]:
        """Return log|det dx_user/dx_model| in nats, to be subtracted from log-densities."""
        if self.scaling is None:
            return jnp.zeros(())
        return self.scaling.log_abs_det(self.event_shape)
