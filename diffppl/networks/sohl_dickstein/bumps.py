"""The temporal readout of the paper's image network, its only part that depends on t.

    z = sum_j g_j(t) y_j,    g_j(t) = softmax_j(-(t - tau_j)^2 / (2 w^2))

The centres tau_j are equally spaced from 1 to T, and w is their spacing. The paper specifies
neither their number nor their range; its code has ten, and half that width.

References:
    Sohl-Dickstein et al. 2015, section D.2.1, equations 62 and 63.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks.arguments import Time, check_size


@final
class BumpReadout(eqx.Module):
    """A weighted mean of coefficients, with weights that depend on the time.

    Args:
        num_steps: T, of the process.
        num_bumps: J.
    """

    num_steps: int = eqx.field(static=True)
    num_bumps: int = eqx.field(static=True)

    def __init__(self, num_steps: int, num_bumps: int) -> None:
        self.num_steps = check_size("num_steps", num_steps)
        self.num_bumps = check_size("num_bumps", num_bumps)

    def bumps(self, t: Time) -> Float[Array, " num_bumps"]:
        """Return the weights g_j(t): positive, with sum 1."""
        centres = jnp.linspace(1.0, self.num_steps, self.num_bumps)
        # The spacing of the centres, kept positive for a single step or a single bump.
        width = max(self.num_steps - 1, 1) / max(self.num_bumps - 1, 1)
        return jax.nn.softmax(-0.5 * ((t - centres) / width) ** 2)

    def __call__(
        self, coefficients: Float[Array, "*any num_bumps"], t: Time
    ) -> Float[Array, "*any"]:
        """Return the readout at step t, in 1..`num_steps`."""
        return coefficients @ self.bumps(t).astype(coefficients.dtype)
