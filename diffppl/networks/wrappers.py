"""Around any network: the same function, had in another way.

`MixedPrecision` computes in a shorter number format; `Rematerialised` forgets what it computed and
does it again for the gradient; `Respaced` is asked at some of its own times (`model.respace`). All
may be stacked, trained and saved like the network inside.
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..checks.arguments import check_callable


@final
class MixedPrecision(eqx.Module):
    """A network that computes in bfloat16, with weights and outputs as they are.

    Weights stay in single precision, where an optimiser's small steps are not lost; a copy of them
    and x_t are cast on the way in, and the output is cast back. Gradients arrive in the format of
    the weights. Sums inside matrix products and convolutions are up to the machine: accelerators
    take them in single precision, and so do group norms and the softmax of attention in `UNet`.

    It pays on accelerators; CPUs have no arithmetic for short numbers and get slower. A known
    denoiser loses its exactness.

    Args:
        network: any network: its arrays of real numbers are the weights. What it makes itself,
            such as features of the time, it should make in their format.

    Example:
        >>> network = dp.networks.MixedPrecision(dp.networks.UNet((28, 28), key=key))
    """

    network: Callable[..., Array]

    def __init__(self, network: Callable[..., Array]) -> None:
        self.network = check_callable("network", network)

    def __call__(self, x_t: Array, t: Any, context: Array | None) -> Array:
        """The raw output for one event, in the type of x_t, if that is real."""
        real = jnp.issubdtype(x_t.dtype, jnp.inexact)
        dtype = x_t.dtype if real else jnp.result_type(float)
        # The context is left to the network: if it is a label, a short format would round it.
        return _short(self.network)(_short(x_t), t, context).astype(dtype)


def _short(tree: Any) -> Any:
    """The same with every array of real numbers in bfloat16."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, tree
    )


@final
class Rematerialised(eqx.Module):
    """A network, or a part of one, that is computed again for the gradient.

    Without it a gradient keeps all that the network computed, at every call. With it a call keeps
    its inputs alone: a gradient through many calls, as along a chain, needs the memory of one. For
    one call that is too large, wrap the network's parts, as `UNet(rematerialise=True)` does.

    Args:
        network: any network.

    Example:
        >>> network = dp.networks.Rematerialised(dp.networks.UNet((28, 28), key=key))
    """

    network: Callable[..., Array]

    def __init__(self, network: Callable[..., Array]) -> None:
        self.network = check_callable("network", network)

    def __call__(self, *args: Any) -> Array:
        """What the network says."""
        return eqx.filter_checkpoint(self.network)(*args)


@final
class Respaced(eqx.Module):
    """A network asked at some of its own times.

    Args:
        network: any network.
        levels: its own time for each t, shape `(num_steps + 1,)`.
    """

    network: Callable[..., Array]
    levels: Int[Array, " levels"]

    def __call__(self, x_t: Array, t: int | Int[Array, ""], context: Array | None) -> Array:
        """The raw output for one event."""
        return self.network(x_t, self.levels[t], context)
