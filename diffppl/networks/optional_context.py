"""A wrapper that makes the context of a network optional.

The network inside receives one more channel, on the last axis of the context:

    (context, 0) with a context,    (0, 1) without.

The encoding of "none" differs from that of every context, and a layer that is linear in the context
has separate learned weights for it. A network that takes labels has a label for "none" already, -1.

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
from .settings import num_classes_of


@final
class OptionalContext(eqx.Module):
    """A network that accepts a context or None.

    Its model represents both p(x_0 | context), `model(context)`, and p(x_0), `model()`. Fit it
    with `losses.ContextDropout(loss)`, or on data without context; `guided(model, weight)` is
    classifier-free guidance.

    Args:
        network: one that takes contexts with one more channel, of shape `(*context_shape[:-1],
            context_shape[-1] + 1)`; or one with `num_classes`, unchanged.
        context_shape: shape of the context of one event. Class labels are whole numbers, of shape
            `()`, if the network has `num_classes`, or one-hot vectors, of shape `(num_classes,)`:
            `jax.nn.one_hot(labels, num_classes)`.

    Raises:
        TypeError: `network` is not callable.
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
        if not self.context_shape and num_classes_of(network) is None:
            raise ValueError(
                "context_shape=() is for labels, but the network was made without num_classes: "
                "set num_classes, or use context_shape=(1,) for a single number."
            )

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """Return the raw output for one event."""
        if not self.context_shape:
            # Labels are floats, as contexts are once a model has converted them.
            label = jnp.full((), NO_CLASS, float) if context is None else context
            return self.network(x_t, t, label)
        *axes, channels = self.context_shape
        # The added channel indicates a missing context: 1 if there is none, 0 otherwise.
        if context is None:
            return self.network(x_t, t, jnp.zeros((*axes, channels + 1)).at[..., -1].set(1))
        is_missing = jnp.zeros((*axes, 1), context.dtype)
        return self.network(x_t, t, jnp.concatenate([context, is_missing], axis=-1))
