"""Classifier-free guidance: a network that leans towards its context.

    f_w(x_t, t, c) = f(x_t, t, c) + w (f(x_t, t, c) - f(x_t, t, none))

Raw outputs that are x_0, the noise or the velocity are linear in E[x_0 given x_t], and so are
combined as it is; logits are combined as log p(x_0 given x_t, c)^(1 + w) / p(x_0 given x_t)^w,
coordinate by coordinate. A variance, where the output has one, is that of the context.

*What this samples.* At w = 0 the conditional, and at w = -1 the unconditional, exactly. Otherwise
it is a heuristic: the noised p(x_0 given c)^(1 + w) / p(x_0)^w has another score than the
combination of noised scores, so that this is not what is sampled. If x_0 given c is N(m, v) and
x_0 is N(0, V), the probability flow ends in a normal distribution of variance

    v (v / V)^w,    where the tilted one has    v / (1 + w (1 - v / V)),

which is larger: with v / V = 1/2, 0.50 v against 0.67 v at w = 1, and 0.125 v against 0.4 v at
w = 3. So `log_prob`, `elbo` and a posterior are those of the chain that is run, not of the tilted
distribution.

At high noise guidance pushes every draw the same way, which costs variety, and at low noise it
changes little: it may be kept to the levels between, where shapes are decided. With a large w a
network is also asked about states that it never saw, and draws run off (a dense network on small
digits, w = 4: three in ten pixels out of range); `model.clipped` stops that.

References:
    Ho and Salimans 2022, section 3.2, equation 6; Bradley and Nakkiran 2024 (what it samples);
    Kynkäänniemi et al. 2024 (guidance between two levels).
"""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..checks.arguments import as_float, check_callable, check_float


@final
class ClassifierFree(eqx.Module):
    """A network, guided. `model.guided(weight)` makes one and says whether there is a variance.

    Without a context it is the network itself. It costs two calls of the network for each.

    Args:
        network: one that may be asked with a context or with None.
        weight: w; 0 is no guidance. Not trained.
        times: the first and the last t that are guided; elsewhere w = 0.
        has_variance: whether the raw output has two channels, of which the second is a variance.

    Raises:
        TypeError, ValueError: `weight` is not one finite number.
    """

    network: Callable[..., Array]
    weight: Float[Array, ""]
    first: Int[Array, ""]
    last: Int[Array, ""]
    has_variance: bool = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[..., Array],
        weight: Any,
        times: tuple[Any, Any] = (0, np.iinfo(np.int32).max),
        *,
        has_variance: bool = False,
    ) -> None:
        self.network = check_callable("network", network)
        self.weight = as_float(check_float("weight", weight))
        self.first, self.last = (jnp.asarray(t, dtype=jnp.int32) for t in times)
        self.has_variance = has_variance

    def __call__(
        self, x_t: Array, t: int | Int[Array, ""], context: Array | None
    ) -> Float[Array, "..."]:
        """The raw output for one event."""
        without = self.network(x_t, t, None)
        if context is None:
            return without
        given = self.network(x_t, t, context)
        # What the context rules out (a log-probability of minus infinity) stays out.
        change = jnp.where(jnp.isneginf(given), 0.0, given - without)
        weight = jnp.where((t >= self.first) & (t <= self.last), self.weight, 0.0)
        guided = given + jax.lax.stop_gradient(weight) * change
        return guided.at[1].set(given[1]) if self.has_variance else guided
