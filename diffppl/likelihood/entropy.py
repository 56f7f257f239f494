"""Bounds on the entropy of the reverse steps of the forward process.

    H(X_t|X_{t-1}) + H(X_{t-1}|X_0) - H(X_t|X_0) <= H_q(X_{t-1}|X_t) <= H(X_t|X_{t-1})    (eq. 24)

The bounds depend on the process and the data alone, not on a network. The lower bound always holds,
since conditioning on X_0 cannot increase the entropy. The upper bound requires H_q(X_{t-1}) <=
H_q(X_t), which holds if the stationary distribution has maximal entropy among distributions of such
data: for real data if their average second moment is 1 (model units), for bits if `rate` is their
mean, for categories with uniform resampling always, and for an absorbing chain never.

For Gaussian diffusion the bounds are log(2 pi e v) / 2 per coordinate, where v is the variance of
q(x_{t-1} | x_t, x_0) for the lower and beta_t for the upper one: the fixed variances of
`LowerVariance` and `UpperVariance`.

References:
    Sohl-Dickstein et al. 2015, section 2.6 and appendix A.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from ..checks.arguments import check_instance, check_key
from ..checks.arrays import Numbers
from ..model import DiffusionModel
from ..model.inputs import check_data


@final
class EntropyBounds(eqx.Module):
    """Bounds on H_q(X_{t-1} | X_t) for t = 1..T, at index t - 1, in nats and model units.

    Attributes:
        lower: lower bounds; -inf at t = 1 for real data, as H(X_0|X_0) = -inf.
        upper: upper bounds, the entropies of the forward steps.
    """

    lower: Float[Array, " num_steps"]
    upper: Float[Array, " num_steps"]


def entropy_bounds(key: Array, model: DiffusionModel, x_0: Numbers) -> EntropyBounds:
    """Bounds of equation 24 on the entropy of every reverse step, averaged over data.

    Exact for Gaussian processes, whose transitions have an entropy independent of x_{t-1}; for
    others H(X_t|X_{t-1}) is averaged over one draw of x_{t-1} for each datum.

    Args:
        key: a typed JAX key.
        model: the model; its network is not used.
        x_0: data in the user's units, shape `(n, *event_shape)`.

    Raises:
        ValueError: the process is absorbing.
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    x_0 = check_data("x_0", x_0, model)
    entropy = jnp.asarray(model.process.base(model.event_shape).entropy())
    if not isinstance(entropy, Tracer) and not np.all(entropy > 1e-6):
        raise ValueError(
            f"model has a {type(model.process).__name__} whose base has zero entropy, an absorbing "
            "chain: equation 24 does not hold for it."
        )
    return _entropy_bounds(key, model, model.to_model(x_0))


@eqx.filter_jit
def _entropy_bounds(key: Array, model: DiffusionModel, x_0: Array) -> EntropyBounds:
    process, n = model.process, x_0.shape[0]

    def entropy(kernel: Distribution) -> Array:
        # The entropy of NumPyro's Normal has the shape of its scale, not the batch shape.
        return jnp.sum(jnp.broadcast_to(jnp.asarray(kernel.entropy()), kernel.batch_shape)) / n

    def forward(x: Array, t: Array | int) -> Array:
        return entropy(process.transition(x, t))

    def noised(t: Array) -> Array:
        return entropy(process.marginal(x_0, t))

    def step(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        key, t = inputs
        x = jnp.asarray(process.marginal(x_0, t - 1).sample(key), x_0.dtype)
        upper = forward(x, t)
        return None, (upper + noised(t - 1) - noised(t), upper)

    times = jnp.arange(2, model.num_steps + 1)
    keys = jax.random.split(key, len(times))
    _, (lower, upper) = jax.lax.scan(step, None, (keys, times))
    # At t = 1 the lower bound is H(X_1|X_0) + H(X_0|X_0) - H(X_1|X_0) = H(X_0|X_0).
    degenerate = jnp.zeros(1) if process.support.is_discrete else jnp.full(1, -jnp.inf)
    return EntropyBounds(
        lower=jnp.concatenate([degenerate, lower]),
        upper=jnp.concatenate([forward(x_0, 1)[None], upper]),
    )
