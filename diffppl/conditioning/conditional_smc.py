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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .chains import ModelChain
from .kernels import FinalKernel, GuidedKernel
from .method import draw_base
from .program import Values
from .target import Level, Target
from .twists import AbstractTwist, Twisted

_Kernel = Callable[[Values, Twisted], GuidedKernel | FinalKernel]


class _Particles(NamedTuple):
    """Particles at one t, of which the last is the reference."""

    x: Values
    twisted: Twisted
    log_weights: Float[Array, " n"]


def conditional_smc(
    key: Array, target: Target, twist: AbstractTwist, path: Values, num_particles: int
) -> tuple[Values, Float[Array, ""]]:
    """Draw a new path from an old one: x_T, .., x_1, x_0 on the leading axis of each site.

    Also returns the share of the path that is new. Supports diffusion sites only, with the model's
    own chain.
    """
    no_latents = jnp.zeros(0)

    def evaluate(x: Values, t: Array | int) -> Twisted:
        level = Level(0, jnp.asarray(t))

        def single(x: Values) -> Twisted:
            return ModelChain().select(twist.evaluate(target, x, level, no_latents))

        return jax.vmap(single)(x)

    def step(
        before: _Particles, inputs: tuple[Array, Array, Values]
    ) -> tuple[_Particles, tuple[Values, Array]]:
        key, t, reference = inputs

        def kernel(x: Values, twisted: Twisted) -> GuidedKernel:
            return GuidedKernel(target, x, twisted, Level(0, t))

        x, log_factors, ancestors = _advance(key, before, kernel, reference)
        twisted = evaluate(x, t - 1)
        return _Particles(x, twisted, log_factors + twisted.log_value), (x, ancestors)

    def final_kernel(x: Values, twisted: Twisted) -> FinalKernel:
        return FinalKernel(target, x, twisted, 0, no_latents)

    key_base, key_steps, key_last, key_path = jax.random.split(key, 4)
    x_T = draw_base(key_base, target, num_particles)
    x_T = {name: x.at[-1].set(path[name][0]) for name, x in x_T.items()}
    twisted = evaluate(x_T, target.num_steps)
    times = jnp.arange(target.num_steps, 1, -1)
    keys = jax.random.split(key_steps, len(times))
    references = {name: x[1:-1] for name, x in path.items()}
    start = _Particles(x_T, twisted, twisted.log_value)
    particles, (xs, ancestors) = jax.lax.scan(step, start, (keys, times, references))
    reference = {name: x[-1] for name, x in path.items()}
    x_0, log_factors, last = _advance(key_last, particles, final_kernel, reference)
    log_likelihood = jax.vmap(lambda x: target.log_likelihood(x, no_latents))(x_0)

    index = jax.random.categorical(key_path, log_likelihood + log_factors)
    lineage = _lineage(index, jnp.concatenate([ancestors, last[None]]))

    def select(x_T: Array, xs: Array, x_0: Array) -> Array:
        history = jnp.concatenate([x_T[None], xs, x_0[None]])
        return history[jnp.arange(len(lineage)), lineage]

    new = {name: select(x_T[name], xs[name], x_0[name]) for name in x_0}
    return new, jnp.mean(lineage != num_particles - 1)


def _advance(
    key: Array, particles: _Particles, kernel: _Kernel, reference: Values
) -> tuple[Values, Float[Array, " n"], Int[Array, " n"]]:
    """Draw ancestors and next states.

    Also returns log p - log q - log psi_t of each next state and its ancestor, and the ancestors.
    """
    x, twisted, log_weights = particles
    n = log_weights.size
    is_reference = jnp.arange(n) == n - 1
    key_ancestors, key_kernel = jax.random.split(key)
    key_free, key_reference = jax.random.split(key_ancestors)
    # Ancestor sampling (Lindsten, Jordan and Schön 2014), see the module docstring.
    log_transition = jax.vmap(lambda x, twisted: kernel(x, twisted).log_own(reference))(x, twisted)
    log_probs = log_weights + log_transition - twisted.log_value
    ancestors = jnp.where(
        is_reference,
        jax.random.categorical(key_reference, log_probs),
        jax.random.categorical(key_free, log_weights, shape=(n,)),
    )
    x, twisted = jax.tree.map(lambda leaf: leaf[ancestors], (x, twisted))

    def propose(key: Array, x: Values, twisted: Twisted, fixed: Array) -> tuple[Values, Array]:
        guided = kernel(x, twisted)
        drawn = guided.sample(key)
        drawn = {name: jnp.where(fixed, reference[name], drawn[name]) for name in drawn}
        # The reference is weighted like the other particles.
        return drawn, guided.log_ratio(drawn)

    drawn, log_ratio = jax.vmap(propose)(jax.random.split(key_kernel, n), x, twisted, is_reference)
    return drawn, log_ratio - twisted.log_value, ancestors


def _lineage(index: Int[Array, ""], ancestors: Int[Array, "T n"]) -> Int[Array, " T+1"]:
    """Return the indices of a particle at t = 0 and of its ancestors, from t = T."""

    def trace_back(index: Array, ancestors: Array) -> tuple[Array, Array]:
        return ancestors[index], ancestors[index]

    _, lineage = jax.lax.scan(trace_back, index, ancestors, reverse=True)
    return jnp.concatenate([lineage, index[None]])
