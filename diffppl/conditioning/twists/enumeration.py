"""The likelihood averaged over every joint state, for few bits or categories.

Coordinates are split into two halves with joint states a and b, R(a, b) is the table of
likelihoods, and

    psi_t(x_t) = sum_{a, b} P(a | x_t) R(a, b) P(b | x_t)
    P(a | x_t) = prod_i p(x_0i = a_i | x_t)

so that the average over 2^16 states of 16 bits is a product with a matrix of 256 rows. The
marginals of P R P give the guided estimates.
"""

import itertools
import math
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..program import Values
from ..states import num_states, state_logits, with_state_logits
from ..target import Level, Target
from .base import AbstractTwist, Twisted, check_kind, check_one_stage

MAX_STATES = 2**16
MAX_STATES_WITH_LATENTS = 2**8
_MIN_LOG_PROB = -200.0  # nats; exp gives 0 in float32, and, unlike -inf, 0 times it is not NaN


@final
class Enumeration(AbstractTwist):
    """psi_t(x_t) = E[r(x_0)] over the factorised p(x_0 | x_t), by a sum over all joint states.

    Exact where the coordinates are independent under the prior, however the likelihood couples
    them. Supports at most 2^16 joint states of all diffusion sites together, or 2^8 with latents,
    since each value of the latents has its own table.
    """

    def resolve(self, target: Target) -> "Enumeration":
        check_kind(target, self, discrete=True, remedy="MomentMatching()")
        check_one_stage(target, self, remedy="ExpectedLikelihood()")
        allowed = MAX_STATES_WITH_LATENTS if target.structure.latents else MAX_STATES
        num = math.prod(_num_states(target))
        if num > allowed:
            with_latents = " with latents" if target.structure.latents else ""
            raise ValueError(
                f"twist=Enumeration() would sum over {num:.3g} joint states of "
                f"{sorted(target.models)}, but supports at most {allowed:,}{with_latents}; use "
                "twist=ExpectedLikelihood() or twist=Perturbation(LinearPower())."
            )
        return self

    def has_jacobian(self, target: Target) -> bool:
        del target
        return False

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        estimates = target.estimate(x, level, latents)
        logits = {
            name: state_logits(target.models[name].process, estimate)
            for name, estimate in estimates.items()
        }
        states = JointStates(target, logits, latents)
        guided = {
            name: with_state_logits(target.models[name].process, estimates[name], tilted)
            for name, tilted in states.marginals().items()
        }
        return Twisted(states.log_mean(), estimates, guided, {}, None, is_joint=True)


@final
class JointStates(eqx.Module):
    """Distribution of independent coordinates times the likelihood, over all joint states.

    Args:
        target: a target with bits and categories only, and few of them.
        logits: logits of the states of every coordinate, by site.
        latents: u.
    """

    target: Target
    log_probs: Float[Array, " columns"]
    log_scale: Float[Array, ""]
    likelihood: Float[Array, "first last"]

    def __init__(self, target: Target, logits: Values, latents: Array) -> None:
        self.target = target
        parts = [
            jax.nn.log_softmax(logits[name], axis=-1)[_is_state(target, name)]
            for name in target.structure.shapes
        ]
        self.log_probs = jnp.maximum(jnp.concatenate(parts), _MIN_LOG_PROB)
        table = _table(target, self._halves(), latents)
        self.log_scale = jnp.max(table)  # scales the largest entry to 1, against overflow
        # If no state is possible, the mean is 0 and the coordinates are left unconditioned.
        is_impossible = jnp.isneginf(self.log_scale)
        self.likelihood = jnp.exp(jnp.where(is_impossible, 0.0, table - self.log_scale))

    def log_mean(self) -> Float[Array, ""]:
        """Return the log of the mean likelihood, nats."""
        first, last = self._joint()
        return _log(first @ self.likelihood @ last) + self.log_scale

    def marginals(self) -> Values:
        """Return the conditioned log-probabilities of the states of every coordinate."""
        first, last = self._joint()
        # Row and column sums of P(a) R(a, b) P(b).
        sums = (first * (self.likelihood @ last), (first @ self.likelihood) * last)
        halves = self._halves()
        flat = jnp.concatenate([h.one_hot.T @ w for h, w in zip(halves, sums, strict=True)])
        # If every product underflows in float32, the coordinates are left unconditioned.
        is_positive = jnp.sum(sums[0]) > jnp.finfo(flat.dtype).tiny
        flat = jnp.where(is_positive, _log(flat), self.log_probs)
        marginals, start = {}, 0
        for name in self.target.structure.shapes:
            own = _is_state(self.target, name)
            logits = jnp.full(own.shape, -jnp.inf).at[own].set(flat[start : start + own.sum()])
            marginals[name] = jax.nn.log_softmax(logits, axis=-1)
            start += own.sum()
        return marginals

    def sample(self, key: Array) -> Values:
        """Draw x_0 at all sites."""
        key_first, key_last = jax.random.split(key)
        first, last = self._joint()
        rows, columns = self._halves()
        # a from its marginal, then b from P(b | a).
        a = jax.random.categorical(key_first, _log(first * (self.likelihood @ last)))
        b = jax.random.categorical(key_last, _log(self.likelihood[a] * last))
        flat = jnp.concatenate([jnp.asarray(rows.states)[a], jnp.asarray(columns.states)[b]])
        return _as_sites(self.target, flat)

    def _joint(self) -> tuple[Float[Array, " first"], Float[Array, " last"]]:
        """Prior probabilities of the joint states of each half."""
        first, last = (
            jnp.exp(half.one_hot @ self.log_probs[half.columns]) for half in self._halves()
        )
        return first, last

    def _halves(self) -> tuple["_Half", "_Half"]:
        return _halves(_num_states(self.target))


def _log(values: Array) -> Array:
    """Logarithm, finite at zero."""
    return jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))


class _Half(NamedTuple):
    """Joint states of one half of the coordinates.

    Attributes:
        states: shape `(num, coordinates)`.
        one_hot: one-hot encoding of `states`, with a column for each state of each coordinate.
        columns: slice of those columns in the vector of all log-probabilities.
    """

    states: Int[np.ndarray, "num coordinates"]
    one_hot: Float[np.ndarray, "num columns"]
    columns: slice


def _num_states(target: Target) -> list[int]:
    """Number of states of each coordinate of all sites, in the order of their names."""
    counts = []
    for name, shape in target.structure.shapes.items():
        counts += num_states(target.models[name].process, shape).ravel().tolist()
    return counts


def _is_state(target: Target, name: str) -> Bool[np.ndarray, "..."]:
    """Mask of the states in the logits of a site that each of its coordinates has."""
    counts = num_states(target.models[name].process, target.structure.shapes[name])
    return np.arange(np.max(counts)) < counts[..., None]


def _halves(counts: list[int]) -> tuple[_Half, _Half]:
    """Joint states of the first and of the last coordinates."""
    # Split where the larger of the two tables is smallest.
    sizes = [max(math.prod(counts[:k]), math.prod(counts[k:])) for k in range(len(counts) + 1)]
    split = int(np.argmin(sizes))

    def half(own: list[int], start: int) -> _Half:
        states = np.array(list(itertools.product(*map(range, own))), dtype=int)
        states = states.reshape(math.prod(own), len(own))
        one_hot = [np.eye(num)[states[:, i]] for i, num in enumerate(own)]
        encoding = np.concatenate([np.zeros((len(states), 0)), *one_hot], axis=1)
        return _Half(states, encoding.astype(np.float32), slice(start, start + sum(own)))

    return half(counts[:split], 0), half(counts[split:], sum(counts[:split]))


def _table(
    target: Target, halves: tuple[_Half, _Half], latents: Array
) -> Float[Array, "first last"]:
    """log r of every joint state; -inf where an entry observed without noise contradicts it."""
    observed = target.observed_entries()

    def log_likelihood(first: Array, last: Array) -> Array:
        x_0 = _as_sites(target, jnp.concatenate([first, last]))
        agrees = [jnp.all(~mask | (x_0[name] == entry)) for name, (mask, entry) in observed.items()]
        value = target.log_likelihood(x_0, latents)
        return jnp.where(jnp.all(jnp.stack(agrees)), value, -jnp.inf)

    rows, columns = (jnp.asarray(half.states) for half in halves)
    return jax.vmap(jax.vmap(log_likelihood, (None, 0)), (0, None))(rows, columns)


def _as_sites(target: Target, flat: Int[Array, " coordinates"]) -> Values:
    """Split a vector of states by site."""
    x_0, start = {}, 0
    for name, shape in target.structure.shapes.items():
        x = flat[start : start + math.prod(shape)].reshape(shape)
        x_0[name] = x.astype(target.models[name].process.dtype)
        start += math.prod(shape)
    return x_0
