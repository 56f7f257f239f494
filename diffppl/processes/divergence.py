"""Divergences of discrete kernels that NumPyro does not implement."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def categorical_kl(
    q: Float[Array, "... states"], p: Float[Array, "... states"]
) -> Float[Array, "..."]:
    """Return KL(q || p) in nats between probability vectors on the last axis.

    Computed as sum_k p_k g(q_k / p_k) with g(r) = r log r - r + 1 >= 0, which equals the usual sum
    for normalised vectors but has no large terms that cancel: a chain of thousands of steps adds
    thousands of tiny divergences, which float32 would lose. States with q_k = 0 contribute p_k.
    """
    positive = q > 0
    # The ratio q / p - 1. Where p is 0 and q is not, it is infinite and so is the divergence.
    excess = (q - p) / jnp.where(p > 0, p, jnp.where(positive, 0.0, 1.0))
    excess = jnp.where(positive, excess, 0.0)
    # Near q / p = 0, log1p(excess) loses digits that the difference of logarithms keeps.
    small = positive & (excess < -0.5)
    difference = jnp.log(jnp.where(small, q, 1.0)) - jnp.log(jnp.where(small, p, 1.0))
    log_ratio = jnp.where(small, difference, jnp.log1p(jnp.where(small, 0.0, excess)))
    terms = jnp.where(positive, q * log_ratio - (q - p), p)
    return jnp.sum(terms, axis=-1)
