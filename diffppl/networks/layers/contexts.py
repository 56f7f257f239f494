"""Embeddings of the context: a linear layer for numeric contexts, a table for labels.

A label is a whole number 0..`num_classes` - 1, of shape (), or -1 for no class. The functions that
take contexts raise for any other value; in traced code, which has no values, the result is NaN.
"""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ...checks.arguments import check_shape, check_size

NO_CLASS = -1


@final
class LabelEmbedding(eqx.Module):
    """A learned vector for each class; zero for `NO_CLASS`.

    Args:
        num_classes: number of classes.
        width: length of the vectors.
        key: for the initial vectors.
    """

    table: Float[Array, "num_classes width"]

    def __init__(self, num_classes: int, width: int, *, key: Array) -> None:
        num_classes = check_size("num_classes", num_classes)
        self.table = jax.random.normal(key, (num_classes, width))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.table.shape[0]

    def __call__(self, label: Array) -> Float[Array, " width"]:
        """Return the vector of one label, an integer or a float."""
        label = jnp.asarray(label).reshape(())
        number = label.astype(jnp.int32)
        is_label = (number == label) & (number >= NO_CLASS) & (number < self.num_classes)
        # The one-hot vector of -1 is zero, and so is the vector of `NO_CLASS`.
        vector = jax.nn.one_hot(number, self.num_classes, dtype=self.table.dtype) @ self.table
        # NaN, because an error cannot depend on traced values.
        return jnp.where(is_label, vector, jnp.nan)


ContextEmbedding = eqx.nn.Linear | LabelEmbedding


def context_embedding(
    width: int,
    context_shape: tuple[int, ...] | None,
    num_classes: int | None,
    *,
    key: Array,
) -> ContextEmbedding | None:
    """Create the embedding of a context; None if there is no context.

    Args:
        width: length of the embedding vector.
        context_shape: shape of the context of one event, if it is numeric.
        num_classes: number of classes, if the context is a label.
        key: for the initial weights.

    Raises:
        ValueError: both, or an invalid shape or size.
    """
    if num_classes is not None:
        if context_shape not in (None, ()):
            raise ValueError(
                f"num_classes={num_classes} means that the context is a label, of shape (), but "
                f"context_shape={context_shape} is another shape: give one of the two."
            )
        return LabelEmbedding(num_classes, width, key=key)
    if context_shape is None:
        return None
    size = math.prod(check_shape("context_shape", context_shape))
    return eqx.nn.Linear(size, width, key=key)


def embed(
    embedding: ContextEmbedding | None, context: Array | None, dtype: DTypeLike
) -> Float[Array, " width"] | None:
    """Return the vector of a context; None if the network takes no context.

    Raises:
        ValueError: a missing context, or a context for a network that takes none.
    """
    if embedding is None:
        if context is not None:
            raise ValueError(
                "context was given, but the network was made without context_shape and num_classes."
            )
        return None
    if context is None:
        raise ValueError(
            "context is missing: the network was made with a context_shape or num_classes."
        )
    if isinstance(embedding, LabelEmbedding):
        return embedding(context)
    return embedding(context.reshape(-1).astype(dtype))
