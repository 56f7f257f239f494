"""The twist for bits and categories: the likelihood averaged over independent guesses."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..target import Target
from .base import AbstractTwist, Estimates, Twisted, denoise, require_kind

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

    def _changes(
        self, target: Target, probabilities: Values, latents: Array
    ) -> tuple[Float[Array, ""], Values]:
        """log r(v), and log r_i(k) - log r(v) for every coordinate and state."""
        mode = {name: jnp.argmax(p, axis=-1) for name, p in probabilities.items()}

        def log_likelihood(values: Values) -> Array:
            return jnp.maximum(target.log_likelihood(values, latents), _FLOOR)

        base = log_likelihood(mode)
        changes = {}
        for name, p in probabilities.items():
            flat, states = mode[name].reshape(-1), p.shape[-1]

            def changed(index: Array, state: Array, name: str = name, flat: Array = flat) -> Array:
                value = flat.at[index].set(state).reshape(mode[name].shape)
                return log_likelihood({**mode, name: value})

            table = jax.vmap(jax.vmap(changed, (None, 0)), (0, None))(
                jnp.arange(flat.size), jnp.arange(states)
            )
            changes[name] = table.reshape(p.shape) - base
        return base, changes

    def _tilt(
        self, target: Target, logits: Values, latents: Array
    ) -> tuple[Float[Array, ""], Values]:
        """log psi, and normalised log-probabilities of every coordinate given the program."""
        log_probs = {name: jax.nn.log_softmax(value, axis=-1) for name, value in logits.items()}
        probabilities = {name: jnp.exp(value) for name, value in log_probs.items()}
        value, changes = self._changes(target, probabilities, latents)
        tilted = {}
        for name, log_prob in log_probs.items():
            joint = log_prob + changes[name]
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
        return Twisted(value, estimates, guided)

    def finish(
        self, key: Array, target: Target, x_1: Values, estimates: Estimates, latents: Array
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.finish`."""
        edges = {
            name: model.process.edge(x_1[name], estimates[name])
            for name, model in target.models().items()
        }
        logits = {name: _edge_logits(edge) for name, edge in edges.items()}
        _, tilted = self._tilt(target, logits, latents)
        x_0: dict[str, Any] = {}
        log_ratio = jnp.zeros(())
        for (name, edge), site_key in zip(
            edges.items(), jax.random.split(key, len(edges)), strict=True
        ):
            x_0[name] = jax.random.categorical(site_key, tilted[name], axis=-1)
            chosen = jnp.take_along_axis(tilted[name], x_0[name][..., None], axis=-1)[..., 0]
            log_ratio = log_ratio + jnp.sum(edge.log_prob(x_0[name]) - chosen)
        return x_0, log_ratio


def _state_logits(logits: Array, target: Target, name: str) -> Float[Array, "... states"]:
    """Log-odds of a bit as log-probabilities of its two states; categories have them already."""
    if target.models()[name].process.num_categories is None:
        return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    return logits


def _estimate_logits(log_probs: Array, target: Target, name: str) -> Float[Array, "..."]:
    if target.models()[name].process.num_categories is None:
        return log_probs[..., 1] - log_probs[..., 0]
    return log_probs


def _edge_logits(edge: Any) -> Float[Array, "... states"]:
    """Log-probabilities of each state under an edge kernel, by asking it."""
    states = edge.enumerate_support(expand=True)
    return jnp.moveaxis(edge.log_prob(states), 0, -1)
