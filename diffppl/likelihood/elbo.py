"""The evidence lower bound (ELBO), its terms and its estimators.

    log p(x_0) >= K(x_0) = E_q[log p(x_0 | x_1)]
                           - sum_{t=2..T} E_q KL( q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t) )
                           - KL( q(x_T | x_0), pi )

This is equation 14 of the paper, which writes the last term as entropies. Every divergence is
evaluated in closed form, so the Monte Carlo noise comes from x_t alone; the reconstruction term is
in closed form where the process has one. All values are in nats and in the user's units: the
log-volume of the model's scaling is included.

References:
    Sohl-Dickstein et al. 2015, section 2.4 and appendix B.
"""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..batching import map_in_blocks
from ..checks.arguments import check_instance, check_key, check_size, size_field
from ..checks.arrays import Numbers
from ..model import DiffusionModel
from ..model.inputs import as_batch
from .estimate import Estimate

BLOCK_SIZE = 2**14  # coordinates, over all events and steps, evaluated in one block


# Terms of the bound, for one event in model units -----------------------------------------------


def reconstruction_term(
    key: Array, model: DiffusionModel, x_0: Array, context: Array | None
) -> Array:
    """Return E_q log p(x_0 | x_1), minus the log-volume of the scaling."""
    expected = model.process.expected_final_log_prob(x_0)
    if expected is None:  # the final step depends on the network: one draw of x_1
        x_1 = jnp.asarray(model.process.marginal(x_0, 1).sample(key), x_0.dtype)
        expected = model.process.final_step(x_1, model.estimate(x_1, 1, context)).log_prob(x_0)
    return jnp.sum(expected) - model.log_abs_det()


def step_term(
    key: Array, model: DiffusionModel, x_0: Array, t: Int[Array, ""], context: Array | None
) -> Array:
    """Return -KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)) at one draw of x_t, for t >= 2."""
    process = model.process
    x_t = jnp.asarray(process.marginal(x_0, t).sample(key), x_0.dtype)
    p = process.reverse(x_t, model.estimate(x_t, t, context), t)
    return -jnp.sum(process.kl(process.posterior(x_t, x_0, t), p))


def prior_term(model: DiffusionModel, x_0: Array) -> Array:
    """Return -KL(q(x_T | x_0), pi)."""
    process = model.process
    return -jnp.sum(process.kl(process.marginal(x_0, process.num_steps), process.base(x_0.shape)))


# Estimators of the sum over steps ---------------------------------------------------------------


class AbstractSteps(eqx.Module):
    """An estimator of the sum of the terms t = 2..T of the bound."""

    @abc.abstractmethod
    def sum_terms(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> tuple[Float[Array, " n"], Float[Array, " num_steps_less_one"]]:
        """Estimate the sum of `step_term` per datum, and each step's term averaged over data."""


@final
class AllSteps(AbstractSteps):
    """Every step at one draw of x_t: the lowest variance, at T network calls per datum."""

    def sum_terms(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> tuple[Array, Array]:
        n, count = x_0.shape[0], model.num_steps - 1

        def step(key: Array, t: Array) -> Array:
            term = lambda key, x, context: step_term(key, model, x, t, context)
            return jax.vmap(term)(jax.random.split(key, n), x_0, context)

        # For small batches several steps are evaluated at once, since the overhead of a loop over
        # single steps would dominate.
        inputs = jax.random.split(key, count), jnp.arange(2, count + 2)
        values = map_in_blocks(step, inputs, max(1, BLOCK_SIZE // x_0.size))
        return values.sum(axis=0), values.mean(axis=1)


@final
class SampledSteps(AbstractSteps):
    """Unbiased estimator from `num` random steps per datum.

    Steps are stratified over the chain, and over the batch as well if `num` is 1; each sampled
    divergence has weight (T - 1) / `num`.
    """

    num: int = eqx.field(static=True, default=1, converter=size_field("num"))

    def sum_terms(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> tuple[Array, Array]:
        n, count = x_0.shape[0], model.num_steps - 1
        if count == 0:
            return jnp.zeros(n), jnp.zeros(0)
        key_times, key_terms = jax.random.split(key)
        times = 2 + stratified_indices(key_times, n, self.num, count)
        keys = jax.random.split(key_terms, (n, self.num))

        def term(key: Array, i: Array, t: Array) -> Array:
            x, context_i = jax.tree.map(lambda x: x[i], (x_0, context))
            return step_term(key, model, x, t, context_i)

        # One block holds at least as many terms as there are data, more if events are small.
        block_size = max(n, BLOCK_SIZE // math.prod(model.event_shape))
        indices = jnp.repeat(jnp.arange(n), self.num)
        values = map_in_blocks(term, (keys.reshape(-1), indices, times.reshape(-1)), block_size)
        # Each of the T - 1 divergences is sampled with expected number num / (T - 1).
        values = values.reshape(n, self.num) * (count / self.num)
        per_step = jnp.zeros(count).at[times - 2].add(values) / n
        return values.sum(axis=1), per_step


def stratified_indices(key: Array, n: int, num: int, count: int) -> Int[Array, "n num"]:
    """Return indices uniform on 0..`count`-1, stratified within every row and over the rows."""
    key_shift, key_order = jax.random.split(key)
    # Each row is a stratified sample, shifted by one of n evenly spaced offsets in random order:
    # every column, and for num = 1 the whole batch, is then stratified over the chain.
    offsets = (jnp.arange(n) + jax.random.uniform(key_shift, (num, n))) / n
    offsets = jax.vmap(jax.random.permutation)(jax.random.split(key_order, num), offsets)
    fractions = (jnp.arange(num) + offsets.T) / num
    return jnp.clip((fractions * count).astype(jnp.int32), 0, count - 1)


# The bound ---------------------------------------------------------------------------------------


def bound(
    key: Array, model: DiffusionModel, x_0: Array, context: Array | None, steps: AbstractSteps
) -> Estimate:
    """Return the ELBO of data in *model* units; pure and differentiable. See `elbo`."""
    key_final, key_steps = jax.random.split(key)
    keys = jax.random.split(key_final, x_0.shape[0])
    reconstruct = lambda key, x, context: reconstruction_term(key, model, x, context)
    reconstructions = jax.vmap(reconstruct)(keys, x_0, context)
    priors = jax.vmap(lambda x: prior_term(model, x))(x_0)
    totals, per_step = steps.sum_terms(key_steps, model, x_0, context)
    per_example = reconstructions + totals + priors
    return Estimate(
        per_example,
        jnp.full_like(per_example, jnp.nan),
        prior=jnp.mean(priors),
        terms=jnp.concatenate([jnp.mean(reconstructions)[None], per_step]),
        num_dimensions=math.prod(model.event_shape),
    )


def elbo(
    key: Array,
    model: DiffusionModel,
    x_0: Numbers,
    *,
    context: Numbers | None = None,
    steps: AbstractSteps = AllSteps(),
    batch_size: int = 1_000,
) -> Estimate:
    """Estimate the evidence lower bound on log p(x_0), averaged over data (equation 14).

    Args:
        key: a typed JAX key.
        model: the model.
        x_0: data in the user's units, shape `(n, *event_shape)`.
        context: one per datum, shape `(n, *context_shape)`, if the model takes one.
        steps: `AllSteps()` evaluates every step, `SampledSteps(num)` a random subset.
        batch_size: number of data evaluated at once; larger is faster and takes more memory.

    Returns:
        An `Estimate` in nats: value, standard error, per-step terms, and bits per dimension.

    Example:
        >>> dp.elbo(jax.random.key(0), model, x_test)
        Estimate(-47.120 ± 0.310 nats, 1.062 bits/dim, n=360)
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    check_instance("steps", steps, AbstractSteps)
    batch_size = check_size("batch_size", batch_size)
    x_0, context = as_batch(model, x_0, context)
    return _elbo(key, model, x_0, context, steps, batch_size)


@eqx.filter_jit
def _elbo(
    key: Array,
    model: DiffusionModel,
    x_0: Array,
    context: Array | None,
    steps: AbstractSteps,
    batch_size: int,
) -> Estimate:
    """Evaluate the bound in blocks of data of equal length, and a shorter last block."""
    n = x_0.shape[0]
    length = math.ceil(n / math.ceil(n / batch_size))
    num_blocks, remainder = divmod(n, length)
    if num_blocks == 1 and not remainder:
        return bound(key, model, x_0, context, steps)
    keys = jax.random.split(key, num_blocks + 1)

    def block(index: int | Array, size: int) -> Estimate:
        rows = lambda x: jax.lax.dynamic_slice_in_dim(x, index * length, size)
        x, c = jax.tree.map(rows, (x_0, context))
        return bound(keys[index], model, x, c, steps)

    # Equal blocks compile once, in a loop; the remainder has its own shape.
    parts = [jax.lax.map(lambda index: block(index, length), jnp.arange(num_blocks))]
    if remainder:
        parts.append(jax.tree.map(lambda x: x[None], block(num_blocks, remainder)))

    def share(part: Estimate) -> tuple[Array, Array]:
        weight = part.per_example.shape[1] / n  # of each block in the mean over data
        return jax.tree.map(lambda x: weight * x.sum(axis=0), (part.prior, part.terms))

    prior, terms = jax.tree.map(lambda *x: sum(x), *map(share, parts))
    per_example = jnp.concatenate([part.per_example.ravel() for part in parts])
    errors = jnp.full_like(per_example, jnp.nan)
    return Estimate(per_example, errors, prior, terms, math.prod(model.event_shape))
