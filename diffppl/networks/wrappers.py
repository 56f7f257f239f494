"""Wrappers that change how a network is evaluated.

`MixedPrecision` computes in bfloat16; `Rematerialised` recomputes intermediate values in the
backward pass; `Respaced` evaluates a network at a subset of its time steps (`respaced`). All
may be nested, trained and saved like the network inside.
"""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..checks.arguments import Time, check_callable


@final
class MixedPrecision(eqx.Module):
    """A network evaluated in bfloat16, with weights and outputs of full precision.

    The stored weights keep their precision, so that small optimiser updates are not rounded away; a
    copy of them and x_t are cast for the call, and the output is cast back. Gradients have the
    dtype of the weights. Accumulation inside matrix products and convolutions depends on the
    hardware: accelerators use single precision. Group norms and the softmax of attention in `UNet`
    use single precision, too.

    It is faster on accelerators; CPUs have no bfloat16 arithmetic and become slower. An analytic
    denoiser is no longer exact.

    Args:
        network: any network; its floating-point arrays are the weights. Arrays that it creates,
            such as time features, should have the dtype of the weights.

    Example:
        >>> network = dp.networks.MixedPrecision(dp.networks.UNet((28, 28), key=key))
    """

    network: Callable[..., Array]

    def __init__(self, network: Callable[..., Array]) -> None:
        self.network = check_callable("network", network)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Array:
        """Return the raw output for one event, in the dtype of x_t if that is floating-point."""
        is_real = jnp.issubdtype(x_t.dtype, jnp.inexact)
        dtype = x_t.dtype if is_real else jnp.result_type(float)
        # The context is not cast: bfloat16 would round a label that is stored as a float.
        return _to_bfloat16(self.network)(_to_bfloat16(x_t), t, context).astype(dtype)


def _to_bfloat16(tree: PyTree) -> PyTree:
    """Cast every floating-point array of a pytree to bfloat16."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, tree
    )


@final
class Rematerialised(eqx.Module):
    """A network, or a part of one, that is recomputed in the backward pass.

    Reverse-mode differentiation otherwise stores the intermediate values of every call. Here each
    call stores its inputs only: a gradient through many calls, as along a chain, needs the memory
    of one. If a single call is too large, wrap the network's parts, as `UNet(rematerialise=True)`
    does.

    Args:
        network: any network.

    Example:
        >>> network = dp.networks.Rematerialised(dp.networks.UNet((28, 28), key=key))
    """

    network: Callable[..., Array]

    def __init__(self, network: Callable[..., Array]) -> None:
        self.network = check_callable("network", network)

    def __call__(self, *args: PyTree) -> Array:
        """Return the output of the network."""
        return eqx.filter_checkpoint(self.network)(*args)


@final
class Respaced(eqx.Module):
    """A network evaluated at a subset of its time steps.

    Args:
        network: any network.
        levels: the network's own time step for each t, shape `(num_steps + 1,)`.
    """

    network: Callable[..., Array]
    levels: Int[Array, " levels"]

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Array:
        """Return the raw output for one event."""
        return self.network(x_t, self.levels[t], context)
