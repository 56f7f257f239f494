"""The likelihood averaged over the factorised p(x_0 | x_t), for bits and categories."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..states import state_logits, with_state_logits
from ..target import Estimates, Level, Target
from .base import AbstractTwist, Twisted, check_kind, log_next_stage

_FLOOR = -1e4  # nats; bounds log r from below, so that ratios to an impossible x_0 are finite

Likelihood = Callable[[Values], Array]
"""log r of an x_0 at some sites, in nats."""


@final
class ExpectedLikelihood(AbstractTwist):
    """psi_t(x_t) = E[r(x_0)] over the factorised p(x_0 | x_t).

    With v the most probable x_0 and r_i(k) the likelihood when coordinate i of v is set to k,

        psi_t = r(v) prod_i sum_k p_i(k) r_i(k) / r(v),

    which is exact if every observation depends on one coordinate. Coordinates are only set to
    values in their support, so a program may use x_0 as an index or in a comparison. Costs one
    evaluation of the program (not of the network) per coordinate and state.
    """

    def resolve(self, target: Target) -> "ExpectedLikelihood":
        check_kind(target, self, discrete=True, remedy="MomentMatching()")
        return self

    def has_jacobian(self, target: Target) -> bool:
        del target
        return False

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        estimates = target.estimate(x, level, latents)
        value, guided = tilted_estimates(
            target, estimates, lambda x_0: log_next_stage(self, target, x | x_0, level, latents)
        )
        return Twisted(value, estimates, guided, {}, None)


def tilted_estimates(
    target: Target, estimates: Estimates, log_likelihood: Likelihood
) -> tuple[Float[Array, ""], Estimates]:
    """Return log E[r] over discrete estimates, and the estimates conditioned on r."""
    processes = {name: target.models[name].process for name in estimates}
    logits = {name: state_logits(processes[name], e) for name, e in estimates.items()}
    value, tilted = tilted_logits(target, logits, log_likelihood)
    guided = {
        name: with_state_logits(processes[name], estimate, tilted[name])
        for name, estimate in estimates.items()
    }
    return value, guided


def tilted_logits(
    target: Target, logits: Values, log_likelihood: Likelihood
) -> tuple[Float[Array, ""], Values]:
    """Return log psi, and the conditioned log-probabilities of every coordinate.

    Args:
        target: provides the entries observed without noise.
        logits: logits of the states of every coordinate, by site; -inf excludes a state.
        log_likelihood: log r of an x_0 at these sites.
    """
    log_probs = {name: jax.nn.log_softmax(value, axis=-1) for name, value in logits.items()}
    observed = {name: entry for name, entry in target.observed_entries().items() if name in logits}
    mode = {
        name: jnp.where(*observed[name], jnp.argmax(value, axis=-1).astype(observed[name][1].dtype))
        for name, value in log_probs.items()
    }
    value, changes = coordinate_changes(mode, log_probs, log_likelihood)
    tilted = {}
    for name, log_prob in log_probs.items():
        # log r_i(k) / r(v); a noiseless observation allows one state of its coordinate.
        mask, entry = observed[name]
        exact = jnp.where(jnp.arange(log_prob.shape[-1]) == entry[..., None], 0.0, _FLOOR)
        log_ratio = jnp.where(mask[..., None], exact, changes[name])
        joint = jnp.where(jnp.isneginf(log_prob), -jnp.inf, log_prob + log_ratio)
        normaliser = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
        value = value + jnp.sum(normaliser)
        tilted[name] = joint - normaliser
    return value, tilted


def coordinate_changes(
    x: Values, states: Values, log_likelihood: Likelihood
) -> tuple[Float[Array, ""], Values]:
    """Return log r(x), and log r_i(k) - log r(x) for every coordinate i of x set to every state k.

    The last axis of each entry of `states` has the length of that site's number of states.
    """

    def bounded(values: Values) -> Array:
        return jnp.maximum(log_likelihood(values), _FLOOR)

    base = bounded(x)
    changes = {}
    for name, like in states.items():
        flat = x[name].reshape(-1)

        def changed(index: Array, state: Array, name: str = name, flat: Array = flat) -> Array:
            value = flat.at[index].set(state).reshape(x[name].shape)
            return bounded(x | {name: value})

        table = jax.vmap(jax.vmap(changed, (None, 0)), (0, None))(
            jnp.arange(flat.size), jnp.arange(like.shape[-1])
        )
        changes[name] = table.reshape(like.shape) - base
    return base, changes
