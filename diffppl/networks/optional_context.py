"""Any network with a context, made able to do without one.

The network inside sees one channel more, on the last axis of the context:

    (context, 0) where there is one,    (0, 1) where there is none.

A layer that is linear in the context then has learned weights of its own for "none", which no
context can be mistaken for. A network that takes labels has a label for "none" already, -1.

References:
    Ho and Salimans 2022, section 3.2.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks.arguments import check_callable, check_shape
from .layers.contexts import NO_CLASS
from .made_for import label_count


@final
class OptionalContext(eqx.Module):
    """A network that may be asked with a context or with None.

    Its model says p(x_0 given context) and p(x_0): `model(context)` and `model()`. Fit it with
    `losses.ContextDropout(loss)`, or on data without context; `model.guided(weight)` is
    classifier-free guidance.

    Args:
        network: one that takes contexts of a channel more, `(*context_shape[:-1],
            context_shape[-1] + 1)`; or one with `num_classes`, as it is.
        context_shape: shape of the context of one event. Class labels enter as whole numbers, of
            shape `()`, where the network has `num_classes`, or as one-hot vectors, of shape
            `(num_classes,)`: `jax.nn.one_hot(labels, num_classes)`.

    Raises:
        TypeError: `network` cannot be called.
        ValueError: `context_shape` is not a shape, or is `()` for a network without `num_classes`.

    Example:
        >>> inner = dp.networks.MLP(event_shape=(2,), num_classes=10, key=jax.random.key(0))
        >>> network = dp.networks.OptionalContext(inner, context_shape=())
        >>> model = dp.DiffusionModel(process, network, (2,), context_shape=())
        >>> loss = dp.losses.ContextDropout(dp.losses.ELBOLoss(), rate=0.1)
        >>> model = dp.fit(key, model, x, context=labels, loss=loss, num_iterations=5_000).model
    """

    network: Callable[..., Array]
    context_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, network: Callable[..., Array], context_shape: tuple[int, ...]) -> None:
        self.network = check_callable("network", network)
        self.context_shape = check_shape("context_shape", context_shape)
        if not self.context_shape and label_count(network) is None:
            raise ValueError(
                "context_shape=() is that of a label, but the network was made without num_classes:"
                " give it num_classes, or use context_shape=(1,) for one number."
            )

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """The raw output for one event."""
        if not self.context_shape:
            label = jnp.full((), NO_CLASS, float) if context is None else context
            return self.network(x_t, t, label)
        *axes, channels = self.context_shape
        if context is None:
            return self.network(x_t, t, jnp.zeros((*axes, channels + 1)).at[..., -1].set(1))
        missing = jnp.zeros((*axes, 1), context.dtype)
        return self.network(x_t, t, jnp.concatenate([context, missing], axis=-1))
