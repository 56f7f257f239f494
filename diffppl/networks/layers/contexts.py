"""Embeddings of a network's context: numbers by a linear layer, labels by a table.

A label is a whole number 0..`num_classes` - 1, of shape (), or -1 for no class. Anything else is
refused where it enters; in a trace, where values are not known, it makes NaN.
"""

import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import check_shape, check_size

NO_CLASS = -1


@final
class LabelEmbedding(eqx.Module):
    """A vector for each class; zero for `NO_CLASS`.

    Args:
        num_classes: how many labels there are.
        width: length of the vectors.
        key: for the initial vectors.
    """

    table: Float[Array, "num_classes width"]

    def __init__(self, num_classes: int, width: int, *, key: Array) -> None:
        num_classes = check_size("num_classes", num_classes)
        self.table = jax.random.normal(key, (num_classes, width))

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return self.table.shape[0]

    def __call__(self, label: Array) -> Float[Array, " width"]:
        """The vector of one label, which may come as a real number."""
        label = jnp.asarray(label).reshape(())
        number = label.astype(jnp.int32)
        is_label = (number == label) & (number >= NO_CLASS) & (number < self.num_classes)
        vector = jax.nn.one_hot(number, self.num_classes, dtype=self.table.dtype) @ self.table
        return jnp.where(is_label, vector, jnp.nan)


ContextEmbedding = eqx.nn.Linear | LabelEmbedding


def context_embedding(
    width: int,
    context_shape: tuple[int, ...] | None,
    num_classes: int | None,
    *,
    key: Array,
) -> ContextEmbedding | None:
    """What turns a context into a vector of length `width`; None where there is no context.

    Args:
        width: length of the vector.
        context_shape: shape of the context of one event, if there is one and it is numbers.
        num_classes: how many labels there are, if the context is one.
        key: for the initial weights.

    Raises:
        ValueError: both, or a shape or a size that is none.
    """
    if num_classes is not None:
        if context_shape not in (None, ()):
            raise ValueError(
                f"num_classes={num_classes} means that the context is a label, of shape (), and "
                f"context_shape={context_shape} that it is not: give one of the two."
            )
        return LabelEmbedding(num_classes, width, key=key)
    if context_shape is None:
        return None
    size = math.prod(check_shape("context_shape", context_shape))
    return eqx.nn.Linear(size, width, key=key)


def embed(
    embedding: ContextEmbedding | None, context: Array | None, dtype: Any
) -> Float[Array, " width"] | None:
    """The vector of a context; None where the network has none.

    Raises:
        ValueError: a context that is missing, or that the network was not made for.
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
