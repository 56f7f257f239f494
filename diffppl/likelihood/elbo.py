"""The evidence lower bound: its terms, its estimates, and the losses that `fit` minimises.

    log p(x_0) >= K(x_0) = E_q[log p(x_0 given x_1)]
                           - sum_{t=2..T} E_q KL( q(x_{t-1} given x_t, x_0), p(x_{t-1} given x_t) )
                           - KL( q(x_T given x_0), pi )

which is the paper's equation 14 (there with the last term written as entropies). Each divergence
is in closed form, so the only noise left is in x_t; where the reconstruction term has a closed form, that is
used too. All values are nats, in the user's units: a model's scaling is counted.

References:
    Sohl-Dickstein et al. 2015, section 2.4 and appendix B.
"""

import abc
import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..batching import map_in_blocks
from ..checks.arguments import check_instance, check_key, check_size, size_field
from ..model import DiffusionModel
from ..model.inputs import check_context, check_data

NUMBERS_AT_ONCE = 2**14  # coordinates of all events that AllSteps visits together


@final
class Bound(eqx.Module):
    """A lower bound on log p(x_0), averaged over data, in nats.

    Attributes:
        per_example: an unbiased estimate for each datum, shape `(n,)`.
        prior: the part of the end of the chain, minus KL(q(x_T given x_0), pi).
        terms: the part of each reverse step t = 1..T, at index t - 1: first
            E log p(x_0 given x_1), then minus each KL. `prior + terms.sum()` is `value`.
        num_dimensions: coordinates of one event.
    """

    per_example: Float[Array, " n"]
    prior: Float[Array, ""]
    terms: Float[Array, " num_steps"]
    num_dimensions: int = eqx.field(static=True)

    @property
    def value(self) -> Float[Array, ""]:
        """Mean over the data, in nats per event."""
        return jnp.mean(self.per_example)

    @property
    def standard_error(self) -> Float[Array, ""]:
        """Of `value`: the spread over data and over noise, divided by sqrt(n). NaN if n = 1."""
        n = self.per_example.size
        return jnp.std(self.per_example, ddof=1) / math.sqrt(n) if n > 1 else jnp.array(jnp.nan)

    @property
    def bits(self) -> Float[Array, ""]:
        """`value` in bits per event."""
        return self.value / math.log(2)

    @property
    def bits_per_dim(self) -> Float[Array, ""]:
        """Minus `value`, in bits per coordinate of the user's own data: smaller is better."""
        return -self.bits / self.num_dimensions

    def __repr__(self) -> str:
        return (
            f"Bound({float(self.value):.3f} ± {float(self.standard_error):.3f} nats, "
            f"{float(self.bits_per_dim):.3f} bits/dim, n={self.per_example.size})"
        )


# The three kinds of term, for one event in model units ------------------------------------------


def reconstruction_term(
    key: Array, model: DiffusionModel, x_0: Array, context: Array | None
) -> Array:
    """E_q log p(x_0 given x_1), less the log-volume of the scaling."""
    expected = model.process.expected_final_log_prob(x_0)
    if expected is None:
        x_1 = jnp.asarray(model.process.marginal(x_0, 1).sample(key), x_0.dtype)
        expected = model.process.final_step(x_1, model.estimate(x_1, 1, context)).log_prob(x_0)
    return jnp.sum(expected) - model.log_abs_det()


def step_term(
    key: Array, model: DiffusionModel, x_0: Array, t: Int[Array, ""], context: Array | None
) -> Array:
    """Minus KL(q(x_{t-1} given x_t, x_0), p(x_{t-1} given x_t)) at one draw of x_t, t >= 2."""
    process = model.process
    x_t = jnp.asarray(process.marginal(x_0, t).sample(key), x_0.dtype)
    p = process.reverse(x_t, model.estimate(x_t, t, context), t)
    return -jnp.sum(process.kl(process.posterior(x_t, x_0, t), p))


def prior_term(model: DiffusionModel, x_0: Array) -> Array:
    """Minus KL(q(x_T given x_0), pi)."""
    process = model.process
    return -jnp.sum(process.kl(process.marginal(x_0, process.num_steps), process.base(x_0.shape)))


# Which steps to visit -----------------------------------------------------------------------------


class AbstractSteps(eqx.Module):
    """Which of the steps t = 2..T an estimate of the bound visits."""

    @abc.abstractmethod
    def sum_terms(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> tuple[Float[Array, " n"], Float[Array, " num_steps_less_one"]]:
        """Estimates of the sum of `step_term`: per datum, and per step averaged over data."""


@final
class AllSteps(AbstractSteps):
    """Every step, one draw of x_t each: the least noise, T network calls per datum."""

    def sum_terms(
        self, key: Array, model: DiffusionModel, x_0: Array, context: Array | None
    ) -> tuple[Array, Array]:
        n, count = x_0.shape[0], model.num_steps - 1

        def step(key: Array, t: Array) -> Array:
            return jax.vmap(
                lambda key, x, context: step_term(key, model, x, t, context),
                in_axes=(0, 0, None if context is None else 0),
            )(jax.random.split(key, n), x_0, context)

        def block(total: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            keys, times, is_new = inputs
            values = jnp.where(is_new[:, None], jax.vmap(step)(keys, times), 0.0)
            return total + jnp.sum(values, axis=0), jnp.mean(values, axis=1)

        # Small batches take several steps at once: a loop over t alone would be all overhead. The
        # last block is filled up with steps that do not count.
        num_blocks = math.ceil(count / max(1, NUMBERS_AT_ONCE // x_0.size))
        length = math.ceil(count / max(1, num_blocks))
        order = jnp.arange(num_blocks * length)
        which = order % max(1, count)
        keys = jax.random.split(key, count)[which]
        blocks = (keys, 2 + which, order < count)
        blocks = jax.tree.map(lambda x: x.reshape(num_blocks, length), blocks)
        total, per_step = jax.lax.scan(block, jnp.zeros(n), blocks)
        return total, per_step.reshape(-1)[:count]


@final
class SampledSteps(AbstractSteps):
    """`num` steps per datum, stratified over the chain and, when `num` is 1, over the batch too.

    Unbiased: each visited divergence counts (T - 1) / `num` times.
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
            return step_term(key, model, x_0[i], t, None if context is None else context[i])

        # As many at once as there are data, or more if they are small.
        at_once = max(n, NUMBERS_AT_ONCE // math.prod(model.event_shape))
        which = jnp.repeat(jnp.arange(n), self.num)
        values = map_in_blocks(term, (keys.reshape(-1), which, times.reshape(-1)), at_once)
        values = values.reshape(n, self.num) * (count / self.num)
        per_step = jnp.zeros(count).at[times - 2].add(values) / n
        return values.sum(axis=1), per_step


def stratified_indices(key: Array, n: int, num: int, count: int) -> Int[Array, "n num"]:
    """Indices in 0..`count`-1, each uniform, spread evenly within every row and over the rows."""
    key_shift, key_order = jax.random.split(key)
    # Row i is a stratified sample shifted by one of n evenly spaced offsets: every column, and
    # with num = 1 the whole batch, then covers the chain evenly.
    offsets = (jnp.arange(n) + jax.random.uniform(key_shift, (num, n))) / n
    offsets = jax.vmap(jax.random.permutation)(jax.random.split(key_order, num), offsets)
    fractions = (jnp.arange(num) + offsets.T) / num
    return jnp.clip((fractions * count).astype(jnp.int32), 0, count - 1)


# The bound ---------------------------------------------------------------------------------------


def bound(
    key: Array, model: DiffusionModel, x_0: Array, context: Array | None, steps: AbstractSteps
) -> Bound:
    """The ELBO of data in *model* units; pure and differentiable. See `elbo`."""
    key_final, key_steps = jax.random.split(key)
    keys = jax.random.split(key_final, x_0.shape[0])
    in_axes = (0, 0, None if context is None else 0)
    edges = jax.vmap(lambda key, x, c: reconstruction_term(key, model, x, c), in_axes)(
        keys, x_0, context
    )
    priors = jax.vmap(lambda x: prior_term(model, x))(x_0)
    totals, per_step = steps.sum_terms(key_steps, model, x_0, context)
    return Bound(
        per_example=edges + totals + priors,
        prior=jnp.mean(priors),
        terms=jnp.concatenate([jnp.mean(edges)[None], per_step]),
        num_dimensions=math.prod(model.event_shape),
    )


def elbo(
    key: Array,
    model: DiffusionModel,
    x_0: Any,
    *,
    context: Any = None,
    steps: AbstractSteps = AllSteps(),  # noqa: B008 (immutable)
    batch_size: int = 1_000,
) -> Bound:
    """A lower bound on log p(x_0), in nats, averaged over data (equation 14).

    Args:
        key: a typed JAX key.
        model: the model.
        x_0: data in the user's units, shape `(n, *event_shape)`.
        context: one per datum, shape `(n, *context_shape)`, if the model takes one.
        steps: `AllSteps()` visits the whole chain, `SampledSteps(num)` some of it.
        batch_size: data looked at together: more memory, more speed.

    Returns:
        A `Bound`: its value, standard error, per-step terms, and bits per dimension.

    Example:
        >>> dp.elbo(jax.random.key(0), model, x_test)
        Bound(-47.120 ± 0.310 nats, 1.062 bits/dim, n=360)
    """
    key = check_key(key)
    check_instance("model", model, DiffusionModel)
    check_instance("steps", steps, AbstractSteps)
    batch_size = check_size("batch_size", batch_size)
    x_0 = check_data("x_0", x_0, model)
    context = check_context(context, model, x_0.shape[0])
    return _elbo(key, model, model.to_model(x_0), context, steps, batch_size)


@eqx.filter_jit
def _elbo(
    key: Array,
    model: DiffusionModel,
    x_0: Array,
    context: Array | None,
    steps: AbstractSteps,
    batch_size: int,
) -> Bound:
    """The bound of blocks of data, one after the other, and of what they leave over."""
    n = x_0.shape[0]
    length = math.ceil(n / math.ceil(n / batch_size))  # equal blocks, where that is possible
    num_blocks, left = divmod(n, length)
    if num_blocks == 1 and not left:
        return bound(key, model, x_0, context, steps)
    keys = jax.random.split(key, num_blocks + 1)
    data = (x_0, context)

    def of(inputs: tuple[Array, tuple[Array, Array | None]]) -> Bound:
        key, (x_0, context) = inputs
        return bound(key, model, x_0, context, steps)

    blocks = jax.tree.map(
        lambda x: x[: num_blocks * length].reshape(num_blocks, length, *x.shape[1:]), data
    )
    found = jax.lax.map(of, (keys[:-1], blocks))
    per_example, priors, terms = found.per_example.reshape(-1), found.prior, found.terms
    shares = jnp.full(num_blocks, length / n)
    if left:
        rest = of((keys[-1], jax.tree.map(lambda x: x[num_blocks * length :], data)))
        per_example = jnp.append(per_example, rest.per_example)
        priors, terms = jnp.append(priors, rest.prior), jnp.vstack([terms, rest.terms])
        shares = jnp.append(shares, left / n)
    return Bound(per_example, shares @ priors, shares @ terms, found.num_dimensions)
