"""The forward and reverse chains of a model as NumPyro programs, and the guide of the latter.

`forward` runs 1 -> T. `reverse` and `guide` both run T -> 1, so that their sites match one to one:
the guide draws x_T from q(x_T | x_0), then each x_{t-1} from q(x_{t-1} | x_t, x_0), and the ELBO of
`SVI(model.reverse, model.guide, optimizer, Trace_ELBO())` is the paper's bound.

Loops are NumPyro `scan`s, whose sites are stacked on a leading axis of time. Batches are part of
the kernels' batch shape, because a plate would have to be inside the scan.

References:
    Sohl-Dickstein et al. 2015, sections 2.1, 2.2 and 2.4.
"""

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike
from numpyro.contrib.control_flow import scan

from ..checks.arguments import check_shape
from .base import AbstractModel
from .inputs import as_events


def forward(model: AbstractModel, x_0: ArrayLike) -> Array:
    """Run the forward chain from x_0 (user's units) as a NumPyro program; return x_T.

    It has one sample site, `x_t`, in model units, stacked over t = 1..T on a leading axis.
    """
    process = model.process
    start = model.to_model(as_events("x_0", x_0, model)).astype(process.dtype)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        # A scan requires a carry of constant dtype, which draws of discrete kernels need not have.
        drawn = numpyro.sample("x_t", model.as_event(process.transition(x, t)))
        return jnp.asarray(drawn, process.dtype), None

    last, _ = scan(step, start, jnp.arange(1, model.num_steps + 1))
    return last


def reverse(
    model: AbstractModel,
    context: Array | None = None,
    obs: Array | None = None,
    batch_shape: tuple[int, ...] = (),
) -> Array:
    """Run the reverse chain as a NumPyro program; return x_0 in the user's units.

    Sites: `x_T`; `x_t`, stacked over t = T-1..1 on a leading axis (absent if T = 1); and `x_0`, in
    the user's units, observed if `obs` is given.

    Args:
        model: the model.
        context: context of the network.
        obs: x_0, shape `(*batch, *event_shape)`.
        batch_shape: shape of a batch of independent chains; that of `obs` takes precedence.

    Raises:
        TypeError, ValueError: `obs` is not data of the model.
    """
    batch_shape = check_shape("batch_shape", batch_shape, least=0)
    if obs is not None:
        obs = jnp.asarray(as_events("obs", obs, model), model.process.dtype)
        batch_shape = obs.shape[: obs.ndim - len(model.event_shape)]
    dtype = model.process.dtype
    base = model.process.base((*batch_shape, *model.event_shape))
    x = jnp.asarray(numpyro.sample("x_T", model.as_event(base)), dtype)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        drawn = numpyro.sample("x_t", model.reverse_kernel(x, t, context))
        return jnp.asarray(drawn, dtype), None

    # A forward scan over decreasing times: NumPyro's scan(reverse=True) flips replayed values.
    if model.num_steps > 1:
        x, _ = scan(step, x, jnp.arange(model.num_steps, 1, -1))
    final_step = model.in_user_units(model.reverse_kernel(x, 1, context))
    return jnp.asarray(numpyro.sample("x_0", final_step, obs=obs))


def guide(model: AbstractModel, context: Array | None = None, obs: Array | None = None) -> None:
    """Draw x_T, ..., x_1 from q(. | x_0 = obs), at the latent sites of `reverse`.

    The guide has no parameters of its own, and takes the arguments of `reverse`.
    """
    del context
    if obs is None:
        raise ValueError("guide requires obs: it is the forward chain from x_0 = obs.")
    process = model.process
    x_0 = model.to_model(as_events("obs", obs, model)).astype(process.dtype)
    last = model.as_event(process.marginal(x_0, model.num_steps))
    x = jnp.asarray(numpyro.sample("x_T", last), process.dtype)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        drawn = numpyro.sample("x_t", model.as_event(process.posterior(x, x_0, t)))
        return jnp.asarray(drawn, process.dtype), None

    if model.num_steps > 1:
        scan(step, x, jnp.arange(model.num_steps, 1, -1))
