"""The twist for bits and categories: the likelihood averaged over independent guesses."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..target import Target
from .base import AbstractTwist, Twisted, denoise, guided_step, require_kind

_FLOOR = -1e4  # nats: lets an impossible guess be compared with its neighbours


@final
class ExpectedLikelihood(AbstractTwist):
    """psi_t(x_t) = E[r(x_0)] over the factorised p(x_0 given x_t).

    With v the most probable x_0 and r_i(k) the likelihood when coordinate i of v is set to k,

        psi_t = r(v) prod_i sum_k p_i(k) r_i(k) / r(v),

    which is exact whenever every observation depends on one coordinate. Coordinates are set only
    to values that they can take, so a program may use x_0 as an index or in a comparison. Costs
    as many evaluations of the program (not of the network) as there are coordinates times states.
    """

    def check(self, target: Target) -> None:
        """Bits and categories only."""
        require_kind(target, self, discrete=True, remedy="MomentMatching()")

    def _tilt(
        self, target: Target, logits: Values, latents: Array
    ) -> tuple[Float[Array, ""], Values]:
        """log psi, and normalised log-probabilities of every coordinate given the program."""
        log_probs = {name: jax.nn.log_softmax(value, axis=-1) for name, value in logits.items()}
        known = target.known()
        mode = {
            name: jnp.where(known[name][0], known[name][1], jnp.argmax(value, axis=-1))
            for name, value in log_probs.items()
        }
        value, changes = coordinate_changes(target, mode, log_probs, latents)
        tilted = {}
        for name, log_prob in log_probs.items():
            mask, entry = known[name]
            observed = jnp.where(jnp.arange(log_prob.shape[-1]) == entry[..., None], 0.0, _FLOOR)
            joint = log_prob + jnp.where(mask[..., None], observed, changes[name])
            normaliser = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
            value = value + jnp.sum(normaliser)
            tilted[name] = joint - normaliser
        return value, tilted

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""
        estimates = denoise(target, x_t, t, latents)
        logits = {
            name: _state_logits(estimate.logits, target, name)
            for name, estimate in estimates.items()
        }
        value, tilted = self._tilt(target, logits, latents)
        guided = {
            name: eqx.tree_at(
                lambda e: e.logits, estimate, _estimate_logits(tilted[name], target, name)
            )
            for name, estimate in estimates.items()
        }
        return Twisted(value, estimates, guided, None)

    def propose(
        self,
        key: Array,
        target: Target,
        x_t: Values,
        twisted: Twisted,
        t: Array,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.propose`."""
        return guided_step(key, target, x_t, twisted, t, given)

    def finish(
        self,
        key: Array,
        target: Target,
        x_1: Values,
        twisted: Twisted,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.finish`."""
        edges = {
            name: model.process.edge(x_1[name], twisted.estimates[name])
            for name, model in target.models().items()
        }
        logits = {name: kernel_logits(edge) for name, edge in edges.items()}
        _, tilted = self._tilt(target, logits, latents)
        x_0: dict[str, Any] = {}
        log_ratio = jnp.zeros(())
        keys = jax.random.split(key, len(edges))
        for (name, edge), site_key in zip(edges.items(), keys, strict=True):
            drawn = jax.random.categorical(site_key, tilted[name], axis=-1)
            x_0[name] = drawn if given is None else given[name]
            chosen = jnp.take_along_axis(tilted[name], x_0[name][..., None], axis=-1)[..., 0]
            log_ratio = log_ratio + jnp.sum(edge.log_prob(x_0[name]) - chosen)
        return x_0, log_ratio


def coordinate_changes(
    target: Target, x: Values, states: dict[str, Array], latents: Array
) -> tuple[Float[Array, ""], Values]:
    """log r(x), and log r_i(k) - log r(x) for every coordinate i of x set to every state k.

    `states` gives each site's number of states by the length of its last axis.
    """

    def log_likelihood(values: Values) -> Array:
        return jnp.maximum(target.log_likelihood(values, latents), _FLOOR)

    base = log_likelihood(x)
    changes = {}
    for name, like in states.items():
        flat = x[name].reshape(-1)

        def changed(index: Array, state: Array, name: str = name, flat: Array = flat) -> Array:
            value = flat.at[index].set(state).reshape(x[name].shape)
            return log_likelihood({**x, name: value})

        table = jax.vmap(jax.vmap(changed, (None, 0)), (0, None))(
            jnp.arange(flat.size), jnp.arange(like.shape[-1])
        )
        changes[name] = table.reshape(like.shape) - base
    return base, changes


def _state_logits(logits: Array, target: Target, name: str) -> Float[Array, "... states"]:
    """Log-odds of a bit as log-probabilities of its two states; categories have them already."""
    if target.models()[name].process.num_categories is None:
        return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    return logits


def _estimate_logits(log_probs: Array, target: Target, name: str) -> Float[Array, "..."]:
    if target.models()[name].process.num_categories is None:
        return log_probs[..., 1] - log_probs[..., 0]
    return log_probs


def kernel_logits(kernel: Any) -> Float[Array, "... states"]:
    """Log-probabilities of each state under a kernel of discrete data, by asking it."""
    states = kernel.enumerate_support(expand=True)
    return jnp.moveaxis(kernel.log_prob(states), 0, -1)
