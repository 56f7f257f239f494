"""What a network is told beside x_t, as one vector: the time, and a context or a label.

    c = silu(B silu(A features(t)) + C context)

References:
    Ho et al. 2020, appendix B (time); Dhariwal and Nichol 2021, section 3.1 (labels are added).
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..arguments import check_shape, check_size
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
            0 and more. Any other number, such as -1, says nothing of the class.
    """

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    context: eqx.nn.Linear | None
    classes: Float[Array, "num_classes width"] | None

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
        self.context = self.classes = None
        if num_classes is not None and context_shape not in (None, ()):
            raise ValueError(
                f"num_classes={num_classes} says that the context is a label, of shape (), and "
                f"context_shape={context_shape} that it is not: give one of the two."
            )
        if num_classes is not None:
            shape = (check_size("num_classes", num_classes), width)
            self.classes = jax.random.normal(key_context, shape)
        elif context_shape is not None:
            size = math.prod(check_shape("context_shape", context_shape))
            self.context = eqx.nn.Linear(size, width, key=key_context)

    def __call__(self, t: int | Int[Array, ""], context: Array | None) -> Float[Array, " width"]:
        """The vector for one event."""
        features = sinusoidal(t, NUM_FEATURES).astype(self.first.weight.dtype)
        # Without a context this depends on t alone, and a batch shares it.
        told = self.last(jax.nn.silu(self.first(features)))
        if self.context is None and self.classes is None:
            if context is not None:
                raise ValueError(
                    "context was given, but the network was made without context_shape and "
                    "num_classes."
                )
        elif context is None:
            raise ValueError(
                "context is missing: the network was made with a context_shape or num_classes."
            )
        elif self.classes is not None:
            label = jnp.asarray(context).reshape(()).astype(jnp.int32)
            told = told + jax.nn.one_hot(label, len(self.classes), dtype=told.dtype) @ self.classes
        elif self.context is not None:
            told = told + self.context(context.reshape(-1).astype(told.dtype))
        return jax.nn.silu(told)
