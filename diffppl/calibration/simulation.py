"""Drawing everything that a program has, data and all, from its own prior."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers

from ..conditioning.program import Program, Values, diffusion_distribution
from ..samplers import AbstractSampler


@final
class Simulated(eqx.Module):
    """A program whose data are given as arrays, so that new data compile nothing."""

    program: Program
    data: Values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program, conditioned on the data."""
        data: dict[str, Any] = dict(self.data)
        return handlers.condition(self.program, data)(*args, **kwargs)


def draw_prior(
    key: Array,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sampler: AbstractSampler,
    num_steps: int,
) -> Values:
    """Every sample site of the program, in the user's units.

    Diffusion sites are drawn by `sampler` from chains of `num_steps` steps.
    """

    def value(site: dict[str, Any]) -> Array | None:
        found = diffusion_distribution(site["fn"]) if site["type"] == "sample" else None
        if found is None or site["is_observed"]:
            return None
        model = sampler.prepare(found.model.respace(num_steps))
        key_base, key_chain = jax.random.split(site["kwargs"]["rng_key"])
        x_T = jnp.asarray(model.process.base(site["fn"].shape()).sample(key_base))
        x_0, _ = sampler.draw(key_chain, model, x_T, found.context, keep_path=False)
        return model.to_user(x_0)

    drawn = handlers.substitute(handlers.seed(program, key), substitute_fn=value)
    trace = handlers.trace(drawn).get_trace(*args, **kwargs)
    return {
        name: jnp.asarray(site["value"]) for name, site in trace.items() if site["type"] == "sample"
    }
