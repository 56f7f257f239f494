"""Log-densities of data under the probability flow; see `diffppl.model.flow_density`."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import sem
from jaxtyping import Array, ArrayLike, Float

from ..checks.arguments import check_instance, check_key
from ..checks.arrays import Numbers
from ..model import DiffusionModel
from ..model.flow_density import AbstractTrace, Hutchinson, event_log_density, log_density
from ..model.inputs import as_batch
from ..model.probability_flow import Integrator, check_flow
from .estimate import Estimate


def flow_log_density(
    model: DiffusionModel,
    x_0: ArrayLike,
    context: Array | None = None,
    *,
    integrator: Integrator = Integrator(),
) -> Float[Array, "..."]:
    """Return the log-density of the probability flow at x_0, in nats and the user's units.

    Pure, deterministic and differentiable, so it can be used inside programs; NaN where the solver
    fails. The trace is exact; `flow_likelihood` estimates it for large events.

    Args:
        model: a model of real data.
        x_0: user's units, shape `(*batch, *event_shape)`; NumPy arrays are centred in double
            precision.
        context: shape `(*context_batch, *context_shape)`, broadcast against the batch.
        integrator: solver of the differential equation.
    """
    check_instance("model", model, DiffusionModel)
    check_instance("integrator", integrator, Integrator)
    return log_density(model, x_0, context, integrator=integrator)


def flow_likelihood(
    key: Array,
    model: DiffusionModel,
    x_0: Numbers,
    *,
    context: Numbers | None = None,
    trace: AbstractTrace = Hutchinson(num_probes=10),
    integrator: Integrator = Integrator(),
) -> Estimate:
    """Estimate the log-density of the probability flow, averaged over data, in nats.

    Args:
        key: a typed JAX key.
        model: a model of real data.
        x_0: data in the user's units, shape `(n, *event_shape)`.
        context: one per datum, shape `(n, *context_shape)`, if the model takes one.
        trace: `ExactTrace()`, or `Hutchinson(num_probes)`, whose Monte Carlo error is part of the
            result.
        integrator: solver of the differential equation.

    Raises:
        ValueError: a model of discrete data.
        RuntimeError: the solver failed, after `max_steps` steps or at a value that is not finite.

    Example:
        >>> dp.flow_likelihood(jax.random.key(0), model, x_test)
        Estimate(-2.104 ± 0.031 nats, 1.518 bits/dim, n=500, Monte Carlo error 0.002)
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    check_flow(model)
    check_instance("trace", trace, AbstractTrace)
    check_instance("integrator", integrator, Integrator)
    x_0, context = as_batch(model, x_0, context)
    return _flow_likelihood(key, model, x_0, context, trace, integrator)


@eqx.filter_jit
def _flow_likelihood(
    key: Array,
    model: DiffusionModel,
    x_0: Array,
    context: Array | None,
    trace: AbstractTrace,
    integrator: Integrator,
) -> Estimate:
    def single(key: Array, x: Array, context: Array | None) -> Array:
        probes = trace.probes(key, model.event_shape)
        return event_log_density(model, x, context, trace, probes, integrator)

    keys = jax.random.split(key, x_0.shape[0])
    values = jax.vmap(single)(keys, x_0, context) - model.log_abs_det()
    values = eqx.error_if(
        values,
        jnp.any(jnp.isnan(values)),
        "the probability flow could not be solved: raise integrator's max_steps or its "
        "tolerances, and check that the network's output is finite.",
    )
    # The probes share the datum, so their spread is the Monte Carlo error conditional on it.
    exact = trace.probes(key, model.event_shape) is None  # deterministic: no error
    return Estimate(
        per_example=values.mean(axis=1),
        per_example_error=jnp.zeros(len(values)) if exact else sem(values, axis=1),
        num_dimensions=math.prod(model.event_shape),
    )
