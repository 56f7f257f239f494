"""Conditional SMC with ancestor sampling: from one path of the posterior to another.

n - 1 particles run freely beside one that is held to a given path x'_T, .., x'_0. At every step the
held particle draws itself a new past,

    P(ancestor = i) proportional to w_t^i p(x'_{t-1} | x_t^i) / psi_t(x_t^i),

with w_t the weights of twisted SMC, and at the end one path is chosen by its weight. The posterior
of paths is left invariant, whatever n.

References:
    Andrieu, Doucet and Holenstein 2010; Lindsten, Jordan and Schön 2014 (ancestor sampling).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .kernels import GuidedKernel, LastKernel
from .method import draw_base
from .program import Values
from .target import Level, Target
from .twists import AbstractTwist, Twisted

_Particles = tuple[Values, Twisted, Float[Array, " n"]]
_Kernels = Callable[[Values, Twisted], Any]


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

    def evaluate(x: Values, t: Array | int) -> Twisted:
        level = Level(0, jnp.asarray(t))
        return jax.vmap(lambda x: twist.evaluate(target, x, level, nothing))(x)

    def ancestors(
        key: Array, log_weights: Array, twisted: Twisted, log_transition: Array
    ) -> Int[Array, " n"]:
        """Free particles choose by weight, the held one by how well it continues."""
        key_free, key_held = jax.random.split(key)
        free = jax.random.categorical(key_free, log_weights, shape=(n,))
        kept = log_weights + log_transition - twisted.log_value
        return jnp.where(held, jax.random.categorical(key_held, kept), free)

    def advance(
        key: Array, particles: _Particles, kernel: _Kernels, reference: Values
    ) -> tuple[Values, Twisted, Array, Array]:
        """Choose ancestors, move the particles, and weigh the moves."""
        x, twisted, log_weights = particles
        key_ancestors, key_move = jax.random.split(key)
        transition = jax.vmap(lambda x, twisted: kernel(x, twisted).log_own(reference))(x, twisted)
        chosen = ancestors(key_ancestors, log_weights, twisted, transition)
        x, twisted = jax.tree.map(lambda leaf: leaf[chosen], (x, twisted))

        def move(key: Array, x: Values, twisted: Twisted, is_held: Array) -> tuple[Values, Array]:
            guided = kernel(x, twisted)
            drawn = guided.sample(key)
            drawn = {name: jnp.where(is_held, reference[name], drawn[name]) for name in drawn}
            return drawn, guided.log_ratio(drawn)

        drawn, log_ratio = jax.vmap(move)(jax.random.split(key_move, n), x, twisted, held)
        return drawn, twisted, log_ratio, chosen

    def step(particles: _Particles, inputs: Any) -> tuple[_Particles, Any]:
        key, t, reference = inputs
        level = Level(0, t)
        x, before, log_ratio, chosen = advance(
            key, particles, lambda x, twisted: GuidedKernel(target, x, twisted, level), reference
        )
        twisted = evaluate(x, t - 1)
        log_weights = log_ratio + twisted.log_value - before.log_value
        return (x, twisted, log_weights), (x, chosen)

    key_base, key_steps, key_last, key_choose = jax.random.split(key, 4)
    x_T = hold(draw_base(key_base, target, n), {name: x[0] for name, x in path.items()})
    twisted = evaluate(x_T, target.num_steps)
    times = jnp.arange(target.num_steps, 1, -1)
    keys = jax.random.split(key_steps, len(times))
    references = {name: x[1:-1] for name, x in path.items()}
    particles, (xs, chosen) = jax.lax.scan(
        step, (x_T, twisted, twisted.log_value), (keys, times, references)
    )
    x_0, before, log_ratio, last = advance(
        key_last,
        particles,
        lambda x, twisted: LastKernel(target, x, twisted, 0, nothing),
        {name: x[-1] for name, x in path.items()},
    )
    log_likelihood = jax.vmap(lambda x: target.log_likelihood(x, nothing))(x_0)
    log_weights = log_likelihood + log_ratio - before.log_value

    # One path, traced back from x_0.
    index = jax.random.categorical(key_choose, log_weights)
    every = jnp.concatenate([chosen, last[None]])

    def back(index: Array, chosen: Array) -> tuple[Array, Array]:
        return chosen[index], chosen[index]

    _, lineage = jax.lax.scan(back, index, every, reverse=True)
    lineage = jnp.concatenate([lineage, index[None]])

    def trace(x_T: Array, xs: Array, x_0: Array) -> Array:
        every = jnp.concatenate([x_T[None], xs, x_0[None]])
        return every[jnp.arange(len(lineage)), lineage]

    new = {name: trace(x_T[name], xs[name], x_0[name]) for name in x_0}
    return new, jnp.mean(lineage != n - 1)
