"""How uncertain a step back in time is, before any network is fit.

    H(X_t|X_{t-1}) + H(X_{t-1}|X_0) - H(X_t|X_0) <= H_q(X_{t-1}|X_t) <= H(X_t|X_{t-1})    (eq. 24)

The lower bound always holds: the later states say nothing more of x_0. The upper one holds if the
stationary distribution has the largest entropy that such data can have: for real data if their
average second moment is 1 (model units), for bits if `rate` is their mean, for categories drawn
anew uniformly always, and for an absorbing chain never.

For Gaussian data the two are log(2 pi e v) / 2 a coordinate, with v the variance of
q(x_{t-1} given x_t, x_0) and beta_t: the fixed variances of `LowerVariance` and `UpperVariance`.

References:
    Sohl-Dickstein et al. 2015, section 2.6 and appendix A.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from ..checks.arguments import check_instance, check_key
from ..model import DiffusionModel
from ..model.inputs import check_data


@final
class EntropyBounds(eqx.Module):
    """Bounds on H_q(X_{t-1} given X_t) for t = 1..T, at index t - 1, in nats and model units.

    Attributes:
        lower: -inf at t = 1 for real data, which have no entropy once they are known.
        upper: entropies of the forward steps.
    """

    lower: Float[Array, " num_steps"]
    upper: Float[Array, " num_steps"]


def entropy_bounds(key: Array, model: DiffusionModel, x_0: Any) -> EntropyBounds:
    """The bracket of equation 24 for every reverse step, averaged over data.

    Exact for Gaussian chains; for others the upper bound averages over one draw of x_{t-1} from
    each datum.

    Args:
        key: a typed JAX key.
        model: the model; its network is not used.
        x_0: data in the user's units, shape `(n, *event_shape)`.

    Raises:
        ValueError: an absorbing chain.
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    x_0 = check_data("x_0", x_0, model)
    entropy = jnp.asarray(model.process.base(model.event_shape).entropy())
    if not isinstance(entropy, Tracer) and not np.all(entropy > 1e-6):
        raise ValueError(
            f"model has a {type(model.process).__name__} whose end has no entropy, an absorbing "
            "chain: equation 24 does not hold for it."
        )
    return _entropy_bounds(key, model, model.to_model(x_0))


@eqx.filter_jit
def _entropy_bounds(key: Array, model: DiffusionModel, x_0: Array) -> EntropyBounds:
    process, n = model.process, x_0.shape[0]

    def total(kernel: Distribution) -> Array:
        # NumPyro's normal gives its entropy in the shape of the scale alone.
        return jnp.sum(jnp.broadcast_to(jnp.asarray(kernel.entropy()), kernel.batch_shape)) / n

    def forward(x: Array, t: Array | int) -> Array:
        return total(process.transition(x, t))

    def noised(t: Array) -> Array:
        return total(process.marginal(x_0, t))

    def step(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        key, t = inputs
        x = jnp.asarray(process.marginal(x_0, t - 1).sample(key), x_0.dtype)
        upper = forward(x, t)
        return None, (upper + noised(t - 1) - noised(t), upper)

    times = jnp.arange(2, model.num_steps + 1)
    keys = jax.random.split(key, len(times))
    _, (lower, upper) = jax.lax.scan(step, None, (keys, times))
    # At t = 1 the two terms H(X_1 given X_0) cancel and H(X_0 given X_0) is left.
    known = jnp.zeros(1) if process.support.is_discrete else jnp.full(1, -jnp.inf)
    return EntropyBounds(
        lower=jnp.concatenate([known, lower]),
        upper=jnp.concatenate([forward(x_0, 1)[None], upper]),
    )
