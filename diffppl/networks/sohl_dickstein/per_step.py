"""A separate linear readout for each step of the chain, as in the paper's small networks.

    output = (R + R_t) h + r + r_t

Each step has its own weights, R + R_t, which parametrise any linear readout per step; R and r are
shared, and trained on all steps.

References:
    Sohl-Dickstein et al. 2015, sections D.1.1 and D.1.2.
"""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...checks.arguments import check_shape, check_size


@final
class PerStepReadout(eqx.Module):
    """A readout linear in h, with weights for each t in 1..`num_steps`, initialised at zero."""

    weight: Float[Array, "outputs size"]
    bias: Float[Array, " outputs"]
    step_weights: Float[Array, "num_steps outputs size"]
    step_biases: Float[Array, "num_steps outputs"]
    output_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, num_steps: int, size: int, output_shape: tuple[int, ...]) -> None:
        num_steps = check_size("num_steps", num_steps)
        self.output_shape = check_shape("output_shape", output_shape)
        outputs = math.prod(self.output_shape)
        self.weight = jnp.zeros((outputs, size))
        self.bias = jnp.zeros(outputs)
        self.step_weights = jnp.zeros((num_steps, outputs, size))
        self.step_biases = jnp.zeros((num_steps, outputs))

    def __call__(self, h: Float[Array, " size"], t: int | Int[Array, ""]) -> Float[Array, "..."]:
        """Return the output at step t, in 1..`num_steps`."""
        # t counts from 1, rows from 0.
        weight = self.weight + self.step_weights[t - 1]
        output = weight @ h + self.bias + self.step_biases[t - 1]
        return output.reshape(self.output_shape)
