"""Conditional SMC with ancestor sampling: a Markov kernel on the paths of a reverse chain.

One of n particles is fixed to a reference trajectory x'_T, .., x'_0; the others follow twisted SMC.
At every step an ancestor is drawn for the reference,

    P(ancestor = i) proportional to w_t^i p(x'_{t-1} | x_t^i) / psi_t(x_t^i),

with w_t the weights of twisted SMC. At the end one path is drawn in proportion to its weight. The
posterior of paths is invariant for any n.

References:
    Andrieu, Doucet and Holenstein 2010; Lindsten, Jordan and Schön 2014 (ancestor sampling).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .chains import ModelChain
from .kernels import FinalKernel, GuidedKernel
from .method import draw_base
from .program import Values
from .target import Level, Target
from .twists import AbstractTwist, Twisted

_Particles = tuple[Values, Twisted, Float[Array, " n"]]
_Kernels = Callable[[Values, Twisted], Any]


def conditional_smc(
    key: Array, target: Target, twist: AbstractTwist, path: Values, num_particles: int
) -> tuple[Values, Float[Array, ""]]:
    """Draw a new path from an old one: x_T, .., x_1, x_0 on the leading axis of each site.

    Also returns the share of the path that is new. Supports diffusion sites only, with the model's
    own chain.
    """
    n, no_latents = num_particles, jnp.zeros(0)
    is_reference = jnp.arange(n) == n - 1

    def with_reference(x: Values, reference: Values) -> Values:
        return {name: x[name].at[-1].set(reference[name]) for name in x}

    def evaluate(x: Values, t: Array | int) -> Twisted:
        level = Level(0, jnp.asarray(t))

        def single(x: Values) -> Twisted:
            return ModelChain().select(twist.evaluate(target, x, level, no_latents))

        return jax.vmap(single)(x)

    def draw_ancestors(
        key: Array, log_weights: Array, twisted: Twisted, log_transition: Array
    ) -> Int[Array, " n"]:
        key_free, key_reference = jax.random.split(key)
        free = jax.random.categorical(key_free, log_weights, shape=(n,))
        # Ancestor sampling (Lindsten, Jordan and Schön 2014), see the module docstring.
        log_probs = log_weights + log_transition - twisted.log_value
        return jnp.where(is_reference, jax.random.categorical(key_reference, log_probs), free)

    def advance(
        key: Array, particles: _Particles, kernel: _Kernels, reference: Values
    ) -> tuple[Values, Twisted, Array, Array]:
        """Draw ancestors and next states; also return log p - log q of the latter."""
        x, twisted, log_weights = particles
        key_ancestors, key_kernel = jax.random.split(key)
        log_transition = jax.vmap(lambda x, twisted: kernel(x, twisted).log_own(reference))(
            x, twisted
        )
        ancestors = draw_ancestors(key_ancestors, log_weights, twisted, log_transition)
        x, twisted = jax.tree.map(lambda leaf: leaf[ancestors], (x, twisted))

        def propose(key: Array, x: Values, twisted: Twisted, fixed: Array) -> tuple[Values, Array]:
            guided = kernel(x, twisted)
            drawn = guided.sample(key)
            drawn = {name: jnp.where(fixed, reference[name], drawn[name]) for name in drawn}
            # The reference is weighted like the other particles.
            return drawn, guided.log_ratio(drawn)

        keys = jax.random.split(key_kernel, n)
        drawn, log_ratio = jax.vmap(propose)(keys, x, twisted, is_reference)
        return drawn, twisted, log_ratio, ancestors

    def step(particles: _Particles, inputs: Any) -> tuple[_Particles, Any]:
        key, t, reference = inputs
        level = Level(0, t)
        x, before, log_ratio, ancestors = advance(
            key, particles, lambda x, twisted: GuidedKernel(target, x, twisted, level), reference
        )
        twisted = evaluate(x, t - 1)
        log_weights = log_ratio + twisted.log_value - before.log_value
        return (x, twisted, log_weights), (x, ancestors)

    key_base, key_steps, key_last, key_path = jax.random.split(key, 4)
    x_T = with_reference(draw_base(key_base, target, n), {name: x[0] for name, x in path.items()})
    twisted = evaluate(x_T, target.num_steps)
    times = jnp.arange(target.num_steps, 1, -1)
    keys = jax.random.split(key_steps, len(times))
    references = {name: x[1:-1] for name, x in path.items()}
    particles, (xs, ancestors) = jax.lax.scan(
        step, (x_T, twisted, twisted.log_value), (keys, times, references)
    )
    x_0, before, log_ratio, last = advance(
        key_last,
        particles,
        lambda x, twisted: FinalKernel(target, x, twisted, 0, no_latents),
        {name: x[-1] for name, x in path.items()},
    )
    log_likelihood = jax.vmap(lambda x: target.log_likelihood(x, no_latents))(x_0)
    log_weights = log_likelihood + log_ratio - before.log_value

    # Draw one particle at t = 0 and trace its ancestors back to t = T.
    index = jax.random.categorical(key_path, log_weights)

    def trace_back(index: Array, ancestors: Array) -> tuple[Array, Array]:
        return ancestors[index], ancestors[index]

    genealogy = jnp.concatenate([ancestors, last[None]])
    _, lineage = jax.lax.scan(trace_back, index, genealogy, reverse=True)
    lineage = jnp.concatenate([lineage, index[None]])

    def select(x_T: Array, xs: Array, x_0: Array) -> Array:
        history = jnp.concatenate([x_T[None], xs, x_0[None]])
        return history[jnp.arange(len(lineage)), lineage]

    new = {name: select(x_T[name], xs[name], x_0[name]) for name in x_0}
    return new, jnp.mean(lineage != n - 1)
