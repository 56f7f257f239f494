"""The log-density of the probability flow of a Gaussian model.

Along the flow dx/dphi = v(x, phi) of `diffppl.model.probability_flow` the instantaneous change of
variables is d log p(x) / dphi = -div v, so in model units

    log p(x_0) = log pi(x_T) + integral of div v from phi_1 to phi_T + (d / 2) log alpha_bar_1

with x_1 = sqrt(alpha_bar_1) x_0 and x_T the end point of the flow. This is the density of the draws
of `samplers.ProbabilityFlow`, not the marginal of the reverse chain; the two converge as the
denoiser becomes exact and the chain long. For an exact denoiser it is the density of the data
convolved with the noise of level 1, up to the errors stated in `diffppl.model.probability_flow`.

The divergence is exact (one directional derivative per coordinate) or Hutchinson's estimate from
random directions e: E[e^T J e] = tr J.

References:
    Chen et al. 2018, "Neural Ordinary Differential Equations", section 4.
    Grathwohl et al. 2019, FFJORD, section 3.1 (Hutchinson).
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3.
"""

import abc
from collections.abc import Callable
from typing import final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ..checks.arguments import size_field
from ..checks.arrays import as_numbers
from .base import AbstractModel
from .inputs import as_context, check_ends_in
from .probability_flow import Integrator, angles, check_flow, over_batch, velocity


class AbstractTrace(eqx.Module):
    """An estimator of the trace of a Jacobian. Subclasses implement `probes` and `trace`."""

    @abc.abstractmethod
    def probes(self, key: Array, event_shape: tuple[int, ...]) -> Array | None:
        """Draw the random directions of one event, which are fixed along the flow."""

    @abc.abstractmethod
    def trace(
        self, function: Callable[[Array], Array], x: Array, probes: Array | None
    ) -> Float[Array, " probes"]:
        """Estimate the trace of the Jacobian of `function` at `x`, once per direction."""


@final
class ExactTrace(AbstractTrace):
    """The exact trace, at one derivative per coordinate; for small events."""

    def probes(self, key: Array, event_shape: tuple[int, ...]) -> None:
        """Return None: no random directions are required."""
        del key, event_shape

    def trace(
        self, function: Callable[[Array], Array], x: Array, probes: Array | None
    ) -> Float[Array, " probes"]:
        del probes
        jacobian = jax.jacfwd(function)(x).reshape(x.size, x.size)
        return jnp.trace(jacobian)[None]


@final
class Hutchinson(AbstractTrace):
    """Hutchinson's unbiased estimator with `num_probes` Rademacher directions; for large events."""

    num_probes: int = eqx.field(static=True, default=1, converter=size_field("num_probes"))

    def probes(self, key: Array, event_shape: tuple[int, ...]) -> Array:
        """Draw random signs, shape `(num_probes, *event_shape)`."""
        return jax.random.rademacher(key, (self.num_probes, *event_shape), jnp.result_type(float))

    def trace(
        self, function: Callable[[Array], Array], x: Array, probes: Array | None
    ) -> Float[Array, " probes"]:
        # e^T J e by one Jacobian-vector product
        return jax.vmap(lambda e: jnp.sum(e * jax.jvp(function, (x,), (e,))[1]))(probes)


def log_density(
    model: AbstractModel,
    x_0: ArrayLike,
    context: Array | None = None,
    *,
    integrator: Integrator = Integrator(),
) -> Float[Array, "..."]:
    """Return the log-density at x_0 with the exact trace: see `likelihood.flow_log_density`."""
    check_flow(model)
    context = as_context("context", context, model)
    exact = ExactTrace()

    def single(x: Array, context: Array | None) -> Array:
        return event_log_density(model, x, context, exact, None, integrator)[0]

    x_0 = as_numbers("x_0", x_0)
    check_ends_in("x_0", x_0.shape, "event_shape", model.event_shape)
    x_0 = model.to_model(x_0).astype(model.process.dtype)
    return over_batch(model, single, x_0, context) - model.log_abs_det()


def event_log_density(
    model: AbstractModel,
    x_0: Array,
    context: Array | None,
    trace: AbstractTrace,
    probes: Array | None,
    integrator: Integrator,
) -> Float[Array, " probes"]:
    """Return the log-density of one event in model units, once per direction of the trace."""
    schedule = model.process.schedule
    levels = angles(schedule)
    alpha_bar_1 = schedule.alpha_bar()[1]

    # x and the accumulated divergence are integrated together, so that the adaptive step size
    # controls the error of both.
    def field(angle: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, _ = state
        function = lambda x: velocity(model, x, angle, context)
        return function(x), trace.trace(function, x, probes)

    x, divergence = jnp.sqrt(alpha_bar_1) * x_0, jnp.zeros(1 if probes is None else len(probes))
    if model.num_steps > 1:  # else level 1 is the last level, and there is no flow
        saveat = diffrax.SaveAt(t1=True)
        states = integrator.solve(field, (x, divergence), levels[0], levels[-1], saveat)
        x, divergence = jax.tree.map(lambda saved: saved[-1], states)
    # The last term is the log-determinant of x_1 = sqrt(alpha_bar_1) x_0.
    base = jnp.sum(model.process.base(model.event_shape).log_prob(x))
    return base + divergence + 0.5 * x.size * jnp.log(alpha_bar_1)
