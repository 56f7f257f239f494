"""Classifier-free guidance: networks with an optional context, and extrapolation between both.

`OptionalContext` has one network for p(x_0 | c) and for p(x_0): the network inside receives one
more channel, on the last axis of the context,

    (context, 0) with a context,    (0, 1) without.

The encoding of "none" differs from that of every context, and a layer that is linear in the context
has separate learned weights for it. A network that takes labels has a label for "none" already, -1.
`ClassifierFree` extrapolates from the unconditional to the conditional output,

    f_w(x_t, t, c) = f(x_t, t, c) + w (f(x_t, t, c) - f(x_t, t, none))

Raw outputs that are x_0, the noise or the velocity are affine in E[x_0 | x_t], so the same
combination applies to E[x_0 | x_t]. Combined logits are those of
p(x_0 | x_t, c)^(1 + w) / p(x_0 | x_t)^w, coordinate by coordinate. The variance channel, if there
is one, is that of the conditional output.

*Sampled distribution.* w = 0 samples the conditional and w = -1 the unconditional distribution,
exactly. Any other w is a heuristic: the noised p(x_0 | c)^(1 + w) / p(x_0)^w has another score than
the combination of noised scores, so it is not the distribution sampled. If p(x_0 | c) is N(m, v)
and p(x_0) is N(0, V), the probability flow ends in a normal distribution of variance

    v (v / V)^w,    while the tilted distribution has    v / (1 + w (1 - v / V)),

which is larger: with v / V = 1/2, 0.50 v against 0.67 v at w = 1, and 0.125 v against 0.4 v at
w = 3. `log_prob`, `elbo` and posteriors are those of the guided chain, not of the tilted
distribution.

At high noise guidance shifts all draws in the same direction, which reduces diversity, and at low
noise it has little effect; it can be restricted to the levels between, which determine shapes. A
large w also evaluates the network at states outside its training distribution, and draws diverge (a
dense network on small digits, w = 4: three in ten pixels out of range); `clipped` prevents
that.

References:
    Ho and Salimans 2022, section 3.2, equation 6; Bradley and Nakkiran 2024 (sampled
    distribution); Kynkäänniemi et al. 2024 (guidance between two levels).
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..checks.arguments import Time, as_float, check_callable, check_float, check_shape
from .layers.embedding import NO_CLASS, num_classes_of


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

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
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


@final
class ClassifierFree(eqx.Module):
    """A network with classifier-free guidance, as created by `guided(model, weight)`.

    Without a context it equals the network inside. With one it evaluates the network twice.

    Args:
        network: one that accepts a context or None.
        weight: w; 0 is no guidance. Not trained.
        times: the first and the last t that are guided; elsewhere w = 0.
        has_variance: whether the raw output has two channels, of which the second is a variance.

    Raises:
        TypeError, ValueError: `weight` is not a single finite number.
    """

    network: Callable[..., Array]
    weight: Float[Array, ""]
    first: Int[Array, ""]
    last: Int[Array, ""]
    has_variance: bool = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[..., Array],
        weight: ArrayLike,
        times: tuple[ArrayLike, ArrayLike] = (0, np.iinfo(np.int32).max),
        *,
        has_variance: bool = False,
    ) -> None:
        self.network = check_callable("network", network)
        self.weight = as_float(check_float("weight", weight))
        self.first, self.last = (jnp.asarray(t, dtype=jnp.int32) for t in times)
        self.has_variance = has_variance

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return the raw output for one event."""
        unconditional = self.network(x_t, t, None)
        if context is None:
            return unconditional
        conditional = self.network(x_t, t, context)
        # A conditional log-probability of minus infinity stays so: the difference may be NaN.
        difference = jnp.where(jnp.isneginf(conditional), 0.0, conditional - unconditional)
        weight = jnp.where((t >= self.first) & (t <= self.last), self.weight, 0.0)
        # The weight is an array, hence a leaf of the pytree, but not a parameter.
        guided = conditional + jax.lax.stop_gradient(weight) * difference
        return guided.at[1].set(conditional[1]) if self.has_variance else guided
