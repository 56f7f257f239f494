"""What a network is told beside x_t, as one vector: the time, and a context or a label.

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

NUM_FEATURES = 64


@final
class Embedding(eqx.Module):
    """The time and the context as one vector of length `width`.

    Args:
        width: its length.
        key: for the initial weights.
        context_shape: shape of the context of one event, if there is one and it is numbers.
        num_classes: how many labels there are, if the context is one: a whole number of shape (),
            0 and more. -1 is no class; any other number makes NaN.
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
        """The vector for one event."""
        features = sinusoidal(t, NUM_FEATURES).astype(self.first.weight.dtype)
        # Without a context this depends on t alone, and a batch shares it.
        told = self.last(jax.nn.silu(self.first(features)))
        vector = embed(self.context, context, told.dtype)
        return jax.nn.silu(told if vector is None else told + vector)
