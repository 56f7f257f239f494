"""Embedding of the time, and of a context or a label, as one conditioning vector.

    c = silu(B silu(A features(t)) + C context)

References:
    Ho et al. 2020, appendix B (time); Dhariwal and Nichol 2021, section 3.1 (labels are added).
"""

from typing import final

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from .contexts import ContextEmbedding, context_embedding, embed
from .time import sinusoidal

NUM_FEATURES = 64  # of the time


@final
class Embedding(eqx.Module):
    """The embedding of time and context as one vector of length `width`.

    Args:
        width: length of the vector.
        key: for the initial weights.
        context_shape: shape of the context of one event, if it is numeric.
        num_classes: number of classes, if the context is a label: a whole number of shape (), 0 or
            more. -1 means no class; any other number gives NaN.
    """

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    context: ContextEmbedding | None

    def __init__(
        self,
        width: int,
        *,
        key: Array,
        context_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ) -> None:
        key_first, key_last, key_context = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(NUM_FEATURES, width, key=key_first)
        self.last = eqx.nn.Linear(width, width, key=key_last)
        self.context = context_embedding(width, context_shape, num_classes, key=key_context)

    def __call__(self, t: int | Int[Array, ""], context: Array | None) -> Float[Array, " width"]:
        """Return the vector for one event."""
        features = sinusoidal(t, NUM_FEATURES).astype(self.first.weight.dtype)
        # Without a context this depends on t alone, and `vmap` computes it once per batch.
        time = self.last(jax.nn.silu(self.first(features)))
        vector = embed(self.context, context, time.dtype)
        return jax.nn.silu(time if vector is None else time + vector)
