"""Embedding of the time, and of a context or a label, as one conditioning vector.

    c = activation(a_n + C context),    a_1 = A_1 features(t),    a_{l+1} = A_{l+1} activation(a_l),
    features(t) = (sin(w_1 t), ..., sin(w_m t), cos(w_1 t), ..., cos(w_m t)),
    w_i = max_period^(-(i - 1) / (m - 1)),

frequencies in geometric progression from 1 to 1 / `max_period`, which resolve neighbouring and
distant steps for any number of steps.

A numeric context has a linear layer C, a label a table of vectors. A label is a whole number
0..`num_classes` - 1, of shape (), or -1 for no class. The functions that take contexts raise for
any other value; in traced code, which has no values, the result is NaN.

References:
    Vaswani et al. 2017, section 3.5, and Ho et al. 2020, appendix B (time); Dhariwal and Nichol
    2021, section 3.1 (labels are added).
"""

import math
from collections.abc import Callable, Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ...checks.arguments import Time, check_callable, check_shape, check_size

NO_CLASS = -1
NUM_FEATURES = 64  # of the time


def sinusoidal(
    t: Time, num_features: int, max_period: float = 10_000.0
) -> Float[Array, " num_features"]:
    """Return sines and cosines of the integer time, `num_features` (even, 4 or more) in all."""
    frequencies = max_period ** -jnp.linspace(0.0, 1.0, num_features // 2)
    angles = jnp.asarray(t, dtype=float) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


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


@final
class Embedding(eqx.Module):
    """The embedding of time and context as one vector of length `width`.

    Args:
        width: length of the vector.
        keys: for the initial weights: one for each layer of the time, and one for the context.
        context_shape: shape of the context of one event, if it is numeric.
        num_classes: number of classes, if the context is a label.
        activation: elementwise, between the layers and of c.

    Raises:
        ValueError: both a shape and classes, or an invalid shape or size.
    """

    time: tuple[eqx.nn.Linear, ...]
    context: eqx.nn.Linear | LabelEmbedding | None
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        *,
        keys: Sequence[Array],
        context_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.silu,
    ) -> None:
        *time_keys, key = keys
        sizes = [NUM_FEATURES] + [width] * len(time_keys)
        self.time = tuple(
            eqx.nn.Linear(sizes[i], width, key=time_key) for i, time_key in enumerate(time_keys)
        )
        self.activation = check_callable("activation", activation, "(x)")
        self.context = None
        if num_classes is not None:
            if context_shape not in (None, ()):
                raise ValueError(
                    f"num_classes={num_classes} means that the context is a label, of shape (), "
                    f"but context_shape={context_shape} is another shape: give one of the two."
                )
            self.context = LabelEmbedding(num_classes, width, key=key)
        elif context_shape is not None:
            size = math.prod(check_shape("context_shape", context_shape))
            self.context = eqx.nn.Linear(size, width, key=key)

    def __call__(self, t: Time, context: Array | None) -> Float[Array, " width"]:
        """Return the vector for one event.

        Raises:
            ValueError: a missing context, or a context for a network that takes none.
        """
        # Without a context this depends on t alone, and `vmap` computes it once per batch.
        first, *others = self.time
        vector = first(sinusoidal(t, NUM_FEATURES).astype(first.weight.dtype))
        for layer in others:
            vector = layer(self.activation(vector))
        if self.context is not None or context is not None:
            vector = vector + self._of_context(context, vector.dtype)
        return self.activation(vector)

    def _of_context(self, context: Array | None, dtype: DTypeLike) -> Float[Array, " width"]:
        if self.context is None:
            raise ValueError(
                "context was given, but the network was made without context_shape and num_classes."
            )
        if context is None:
            raise ValueError(
                "context is missing: the network was made with a context_shape or num_classes."
            )
        if isinstance(self.context, LabelEmbedding):
            return self.context(context)
        return self.context(context.reshape(-1).astype(dtype))


def num_classes_of(network: PyTree) -> int | None:
    """Return `num_classes` of a network, or None if its context is not a label."""
    # Read from the parts, so that wrappers need not forward it.
    parts = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, LabelEmbedding))
    # A label must be valid for every embedding of the network.
    numbers = [part.num_classes for part in parts if isinstance(part, LabelEmbedding)]
    return min(numbers, default=None)
