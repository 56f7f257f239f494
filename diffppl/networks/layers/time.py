"""Sinusoidal features of the time.

    features(t) = (sin(w_1 t), ..., sin(w_n t), cos(w_1 t), ..., cos(w_n t)),
    w_i = max_period^(-(i - 1) / (n - 1)),

frequencies in geometric progression from 1 to 1 / `max_period`, which resolve neighbouring and
distant steps for any number of steps.

References:
    Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoidal(
    t: int | Int[Array, ""], num_features: int, max_period: float = 10_000.0
) -> Float[Array, " num_features"]:
    """Return sines and cosines of the integer time, `num_features` (even, 4 or more) in all."""
    frequencies = max_period ** -jnp.linspace(0.0, 1.0, num_features // 2)
    angles = jnp.asarray(t, dtype=float) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
