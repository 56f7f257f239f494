"""Importance-sampling estimates of log p(x_0) from forward trajectories; the Jarzynski equality.

    p(x_0) = E_q[exp(-W)],    W = log q(x_1, .., x_T | x_0) - log p(x_0, .., x_T)      (eq. 9)

W is the *work* along a forward trajectory. By Jensen's inequality -E[W] is the ELBO, and the gap
E[W] + log p(x_0) = KL(q(x_{1:T} | x_0), p(x_{1:T} | x_0)) >= 0 is the *dissipation*, which vanishes
in the quasi-static limit, where the forward and the reverse process have the same law. The log of
the mean of exp(-W) over S trajectories is a lower bound in expectation, which increases to
log p(x_0) with S.

With the kernels of q factorised backwards in time, every term is the log of a ratio near 1:

    W = log q(x_T | x_0) / pi(x_T) - log p(x_0 | x_1)
        + sum_{t=2..T} log q(x_{t-1} | x_t, x_0) / p(x_{t-1} | x_t)

so that in float32 differences are taken before sums. The closed forms of `diffppl.likelihood.elbo`
are not used, since an expectation inside the exponent would bias the mean of exp(-W).

References:
    Sohl-Dickstein et al. 2015, section 2.3; Jarzynski 1997; Neal 2001.
    Burda, Grosse and Salakhutdinov 2016 (the bound for S paths).
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import sem
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from ..batching import map_in_blocks
from ..checks.arguments import check_instance, check_key, check_size
from ..checks.arrays import Numbers
from ..model import DiffusionModel
from ..model.inputs import as_batch
from .estimate import Estimate


@final
class PathWork(eqx.Module):
    """The work of S forward trajectories from each of n data.

    Attributes:
        work: W in nats, in the user's units, shape `(n, S)`.
        num_dimensions: number of coordinates of one event; None if it is not known.
    """

    work: Float[Array, "n S"]
    num_dimensions: int | None = eqx.field(static=True, default=None)

    @property
    def log_likelihood(self) -> Estimate:
        """Estimate of log p(x_0), the log-mean-exp of -W, with delta-method standard errors.

        The errors are reliable only if `effective_sample_size` is large: if the largest terms of
        the mean were not sampled, both the estimate and its error are too small.
        """
        log_mean = jax.nn.logmeanexp(-self.work, axis=1)
        # Delta method: the error of log(mean w) is that of the mean of w / mean w.
        relative = self.work.shape[1] * jax.nn.softmax(-self.work, axis=1)
        error = sem(relative, axis=1)
        return Estimate(log_mean, error, num_dimensions=self.num_dimensions)

    @property
    def dissipation(self) -> Float[Array, " n"]:
        """Mean W + log p(x_0) of each datum, in nats: the gap of the ELBO; never negative."""
        return jnp.mean(self.work, axis=1) + self.log_likelihood.per_example

    @property
    def effective_sample_size(self) -> Float[Array, " n"]:
        """Effective sample size of the S trajectories of each datum, (sum w)^2 / sum w^2."""
        return 1 / jnp.sum(jax.nn.softmax(-self.work, axis=1) ** 2, axis=1)

    def __repr__(self) -> str:
        n, num = self.work.shape
        return (
            f"PathWork(log p = {float(self.log_likelihood.value):.3f} nats, dissipation "
            f"{float(jnp.mean(self.dissipation)):.3f}, n={n}, {num} paths each)"
        )


def path_work(key: Array, model: DiffusionModel, x_0: Array, context: Array | None = None) -> Array:
    """Return the work W of one forward trajectory from each x_0; pure.

    Args:
        key: a typed JAX key.
        model: the model.
        x_0: *model* units, shape `(*batch, *event_shape)`.
        context: shape `(*context_batch, *context_shape)`, broadcast against the batch.

    Returns:
        Shape `(*batch,)`, in nats, for the density in the user's units.
    """
    process, num_steps = model.process, model.num_steps
    key_last, key_steps = jax.random.split(key)
    events = tuple(range(x_0.ndim - len(model.event_shape), x_0.ndim))

    def log_prob(kernel: Distribution, x: Array) -> Array:
        return jnp.sum(jnp.asarray(kernel.log_prob(x)), axis=events)

    # The trajectory is drawn from t = T downwards, with q(x_T | x_0) and q(x_{t-1} | x_t, x_0).
    marginal = process.marginal(x_0, num_steps)
    x = jnp.asarray(marginal.sample(key_last), x_0.dtype)
    work = log_prob(marginal, x) - log_prob(process.base(x_0.shape), x)

    def step(
        state: tuple[Array, Array], inputs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        x, work = state
        key, t = inputs
        q = process.posterior(x, x_0, t)
        x_previous = jnp.asarray(q.sample(key), x_0.dtype)
        p = process.reverse(x, model.estimate(x, t, context), t)
        # Differences per coordinate before their sum: both log-densities are large, their
        # difference is small.
        log_ratio = jnp.asarray(q.log_prob(x_previous)) - jnp.asarray(p.log_prob(x_previous))
        return (x_previous, work + jnp.sum(log_ratio, axis=events)), None

    times = jnp.arange(num_steps, 1, -1)
    keys = jax.random.split(key_steps, len(times))
    (x, work), _ = jax.lax.scan(step, (x, work), (keys, times))
    final = process.final_step(x, model.estimate(x, 1, context))
    return work - log_prob(final, x_0) + model.log_abs_det()


def jarzynski(
    key: Array,
    model: DiffusionModel,
    x_0: Numbers,
    *,
    num_trajectories: int,
    context: Numbers | None = None,
    batch_size: int = 1_000,
) -> PathWork:
    """Estimate log p(x_0) and the dissipation from the work of forward trajectories.

    Args:
        key: a typed JAX key.
        model: the model.
        x_0: data in the user's units, shape `(n, *event_shape)`.
        num_trajectories: S, the number of trajectories per datum.
        context: one per datum, shape `(n, *context_shape)`, if the model takes one.
        batch_size: trajectories simulated at once.

    Example:
        >>> result = dp.jarzynski(jax.random.key(0), model, x_test, num_trajectories=1_000)
        >>> result.log_likelihood, result.dissipation, result.work
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    num_trajectories = check_size("num_trajectories", num_trajectories)
    batch_size = check_size("batch_size", batch_size)
    x_0, context = as_batch(model, x_0, context)
    work = _work(key, model, x_0, context, num_trajectories, batch_size)
    return PathWork(work, math.prod(model.event_shape))


@eqx.filter_jit
def _work(
    key: Array,
    model: DiffusionModel,
    x_0: Array,
    context: Array | None,
    num_trajectories: int,
    batch_size: int,
) -> Float[Array, "n S"]:
    n = x_0.shape[0]

    def one(key: Array, index: Array) -> Array:
        return path_work(key, model, *jax.tree.map(lambda x: x[index], (x_0, context)))

    keys = jax.random.split(key, n * num_trajectories)
    indices = jnp.repeat(jnp.arange(n), num_trajectories)
    return map_in_blocks(one, (keys, indices), batch_size).reshape(n, num_trajectories)


def importance_bound(
    key: Array,
    model: DiffusionModel,
    x_0: Numbers,
    *,
    num_particles: int,
    context: Numbers | None = None,
    batch_size: int = 1_000,
) -> Estimate:
    """Estimate the importance-weighted lower bound on log p(x_0), averaged over data, in nats.

    Its expectation equals the ELBO for `num_particles` = 1, does not decrease with `num_particles`,
    and converges to log p(x_0).

    Args:
        key: a typed JAX key.
        model: the model.
        x_0: data in the user's units, shape `(n, *event_shape)`.
        num_particles: forward trajectories per datum.
        context: one per datum, shape `(n, *context_shape)`, if the model takes one.
        batch_size: trajectories simulated at once.
    """
    num_particles = check_size("num_particles", num_particles)
    result = jarzynski(
        key, model, x_0, num_trajectories=num_particles, context=context, batch_size=batch_size
    )
    return result.log_likelihood
