"""Prior draws of a program."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .arguments import Arguments, traced
from .compilation import jit_quickly
from .program import Program, Values, execute, is_observed
from .traced import Traced


def draw_prior(
    key: Array, program: Program, args: tuple[object, ...], kwargs: dict[str, object], num: int
) -> Values:
    """Draw the unobserved and deterministic sites of a program `num` times.

    Diffusion sites are drawn by `model().sample`; observed sites keep their observations.
    """

    def make(arguments: Arguments) -> tuple[Traced, PyTree]:
        def draw(key: Array, inputs: PyTree) -> Values:
            trace = execute(key, program, arguments, inputs, lambda site: None)
            return {
                name: jnp.asarray(site["value"])
                for name, site in trace.items()
                if site["type"] in ("sample", "deterministic") and not is_observed(site)
            }

        return Traced(draw, key, arguments.inputs), arguments.inputs

    draw, inputs = traced(make, Arguments(args, kwargs, {}))
    return _draw(jax.random.split(key, num), draw, inputs)


@jit_quickly(optimization_level=0)
def _draw(keys: Array, draw: Traced, inputs: PyTree) -> Values:
    return jax.vmap(lambda key: draw(key, inputs))(keys)
