"""Divergences between discrete kernels that NumPyro does not supply."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def categorical_kl(
    q: Float[Array, "... states"], p: Float[Array, "... states"]
) -> Float[Array, "..."]:
    """KL(q, p) in nats between probability vectors on the last axis.

    Written as sum_k p_k g(q_k / p_k) with g(r) = r log r - r + 1 >= 0, which equals the usual sum
    for normalised vectors but has no large terms that cancel: a chain of thousands of steps adds
    thousands of tiny divergences, and float32 would lose them. States with q_k = 0 cost p_k.
    """
    seen = q > 0
    # Where p is 0 but q is not, the ratio below is infinite and so is the divergence.
    excess = (q - p) / jnp.where(p > 0, p, jnp.where(seen, 0.0, 1.0))
    excess = jnp.where(seen, excess, 0.0)
    # A ratio that is all but 0 keeps its digits in the logarithms of its two sides.
    far = seen & (excess < -0.5)
    apart = jnp.log(jnp.where(far, q, 1.0)) - jnp.log(jnp.where(far, p, 1.0))
    log_ratio = jnp.where(far, apart, jnp.log1p(jnp.where(far, 0.0, excess)))
    terms = jnp.where(seen, q * log_ratio - (q - p), p)
    return jnp.sum(terms, axis=-1)
