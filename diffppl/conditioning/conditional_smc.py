"""Conditional SMC with ancestor sampling: from one path of the posterior to another.

n - 1 particles run freely beside one that is held to a given path x'_T, .., x'_0. At every step the
held particle draws itself a new past,

    P(ancestor = i) proportional to w_t^i p(x'_{t-1} given x_t^i) / psi_t(x_t^i),

with w_t the weights of twisted SMC, and at the end one path is chosen by its weight. The posterior
of paths is left invariant, whatever n.

References:
    Andrieu, Doucet and Holenstein 2010; Lindsten, Jordan and Schön 2014 (ancestor sampling).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .method import draw_base
from .program import Values
from .target import Target
from .twists import AbstractTwist, Twisted

_Particles = tuple[Values, Twisted, Float[Array, " n"]]


def conditional_smc(
    key: Array, target: Target, twist: AbstractTwist, path: Values, num_particles: int
) -> tuple[Values, Float[Array, ""]]:
    """A new path, x_T, .., x_1, x_0 on the leading axis of each site, given an old one.

    Also the share of the path that is new. Diffusion sites only; the model's own chain.
    """
    n, nothing = num_particles, jnp.zeros(0)
    held = jnp.arange(n) == n - 1

    def hold(x: Values, reference: Values) -> Values:
        """The last particle is the reference."""
        return {name: x[name].at[-1].set(reference[name]) for name in x}

    def look(x: Values, t: Array | int) -> Twisted:
        return jax.vmap(lambda x: twist.look(target, x, jnp.asarray(t), nothing))(x)

    def parents(
        key: Array, log_weights: Array, twisted: Twisted, log_transition: Array
    ) -> Int[Array, " n"]:
        """Free particles choose by weight, the held one by how well it continues."""
        key_free, key_held = jax.random.split(key)
        free = jax.random.categorical(key_free, log_weights, shape=(n,))
        kept = log_weights + log_transition - twisted.log_value
        return jnp.where(held, jax.random.categorical(key_held, kept), free)

    def log_transition(x: Values, twisted: Twisted, t: Array | int, reference: Values) -> Array:
        """log p(reference given x_t) of each particle."""

        def single(x: Values, twisted: Twisted) -> Array:
            total = jnp.zeros(())
            for name, model in target.models().items():
                process, estimate = model.process, twisted.estimates[name]
                last = isinstance(t, int)
                kernel = (
                    process.edge(x[name], estimate)
                    if last
                    else process.reverse(x[name], estimate, t)
                )
                total = total + jnp.sum(kernel.log_prob(reference[name]))
            return total

        return jax.vmap(single)(x, twisted)

    def advance(
        key: Array, particles: _Particles, t: Array | int, reference: Values
    ) -> tuple[Values, Twisted, Array, Array]:
        """Choose parents, move them, and weigh the moves."""
        x, twisted, log_weights = particles
        key_parents, key_move = jax.random.split(key)
        transition = log_transition(x, twisted, t, reference)
        parent = parents(key_parents, log_weights, twisted, transition)
        x, twisted = jax.tree.map(lambda leaf: leaf[parent], (x, twisted))
        keys = jax.random.split(key_move, n)

        def move(key: Array, x: Values, twisted: Twisted, given: Any) -> tuple[Values, Array]:
            if isinstance(t, int):
                return twist.finish(key, target, x, twisted, nothing, given=given)
            return twist.propose(key, target, x, twisted, t, nothing, given=given)

        free = jax.vmap(lambda key, x, twisted: move(key, x, twisted, None)[0])
        drawn = free(keys, x, twisted)
        drawn = hold(drawn, reference)
        _, log_ratio = jax.vmap(move)(keys, x, twisted, drawn)
        return drawn, twisted, log_ratio, parent

    def step(particles: _Particles, inputs: Any) -> tuple[_Particles, Any]:
        key, t, reference = inputs
        x, before, log_ratio, parent = advance(key, particles, t, reference)
        twisted = look(x, t - 1)
        log_weights = log_ratio + twisted.log_value - before.log_value
        return (x, twisted, log_weights), (x, parent)

    key_base, key_steps, key_last, key_choose = jax.random.split(key, 4)
    x_T = hold(draw_base(key_base, target, n), {name: x[0] for name, x in path.items()})
    twisted = look(x_T, target.num_steps)
    times = jnp.arange(target.num_steps, 1, -1)
    keys = jax.random.split(key_steps, len(times))
    references = {name: x[1:-1] for name, x in path.items()}
    particles, (xs, ancestors) = jax.lax.scan(
        step, (x_T, twisted, twisted.log_value), (keys, times, references)
    )
    x_0, before, log_ratio, parent = advance(
        key_last, particles, 1, {name: x[-1] for name, x in path.items()}
    )
    log_likelihood = jax.vmap(lambda x: target.log_likelihood(x, nothing))(x_0)
    log_weights = log_likelihood + log_ratio - before.log_value

    # One path, traced back from x_0.
    chosen = jax.random.categorical(key_choose, log_weights)
    ancestors = jnp.concatenate([ancestors, parent[None]])

    def back(index: Array, parents: Array) -> tuple[Array, Array]:
        return parents[index], parents[index]

    _, lineage = jax.lax.scan(back, chosen, ancestors, reverse=True)
    lineage = jnp.concatenate([lineage, chosen[None]])

    def trace(x_T: Array, xs: Array, x_0: Array) -> Array:
        every = jnp.concatenate([x_T[None], xs, x_0[None]])
        return every[jnp.arange(len(lineage)), lineage]

    new = {name: trace(x_T[name], xs[name], x_0[name]) for name in x_0}
    return new, jnp.mean(lineage != n - 1)
