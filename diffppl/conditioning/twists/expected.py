"""The twist for bits and categories: the likelihood averaged over independent guesses."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..states import state_logits, with_state_logits
from ..target import Estimates, Level, Target
from .base import AbstractTwist, Twisted, log_ahead, require_kind

_FLOOR = -1e4  # nats: lets an impossible guess be compared with its neighbours

Likelihood = Callable[[Values], Array]
"""log r of an x_0 at some sites, in nats."""


@final
class ExpectedLikelihood(AbstractTwist):
    """psi_t(x_t) = E[r(x_0)] over the factorised p(x_0 | x_t).

    With v the most probable x_0 and r_i(k) the likelihood when coordinate i of v is set to k,

        psi_t = r(v) prod_i sum_k p_i(k) r_i(k) / r(v),

    which is exact whenever every observation depends on one coordinate. Coordinates are set only
    to values that they can take, so a program may use x_0 as an index or in a comparison. Costs
    as many evaluations of the program (not of the network) as there are coordinates times states.
    """

    def resolve(self, target: Target) -> "ExpectedLikelihood":
        """Bits and categories only."""
        require_kind(target, self, discrete=True, remedy="MomentMatching()")
        return self

    def has_jacobian(self, target: Target) -> bool:
        """Discrete data have none."""
        del target
        return False

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        estimates = target.estimate(x, level, latents)
        value, guided = tilted_estimates(
            target, estimates, lambda x_0: log_ahead(self, target, x | x_0, level, latents)
        )
        return Twisted(value, estimates, guided, {}, None)


def tilted_estimates(
    target: Target, estimates: Estimates, log_likelihood: Likelihood
) -> tuple[Float[Array, ""], Estimates]:
    """log E[r] over discrete estimates, and the estimates conditioned on r."""
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
    """log psi, and log-probabilities of every coordinate given the program.

    Args:
        target: for the entries that are known without noise.
        logits: of the states of every coordinate, by site; a state of logit -inf is not proposed.
        log_likelihood: of an x_0 at these sites.
    """
    log_probs = {name: jax.nn.log_softmax(value, axis=-1) for name, value in logits.items()}
    known = {name: entry for name, entry in target.known().items() if name in logits}
    mode = {
        name: jnp.where(*known[name], jnp.argmax(value, axis=-1).astype(known[name][1].dtype))
        for name, value in log_probs.items()
    }
    value, changes = coordinate_changes(mode, log_probs, log_likelihood)
    tilted = {}
    for name, log_prob in log_probs.items():
        mask, entry = known[name]
        observed = jnp.where(jnp.arange(log_prob.shape[-1]) == entry[..., None], 0.0, _FLOOR)
        gain = jnp.where(mask[..., None], observed, changes[name])
        joint = jnp.where(jnp.isneginf(log_prob), -jnp.inf, log_prob + gain)
        normaliser = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
        value = value + jnp.sum(normaliser)
        tilted[name] = joint - normaliser
    return value, tilted


def coordinate_changes(
    x: Values, states: Values, log_likelihood: Likelihood
) -> tuple[Float[Array, ""], Values]:
    """log r(x), and log r_i(k) - log r(x) for every coordinate i of x set to every state k.

    `states` gives each site's number of states by the length of its last axis.
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
