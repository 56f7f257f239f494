"""A program bound to its arguments: the structure of its sites, and its densities as functions.

Binding executes the program four times on abstract values and stores the jaxprs, which inference
evaluates in place of the program.

| function      | inputs                                 | outputs                                |
| ------------- | -------------------------------------- | -------------------------------------- |
| `prior`       | key                                    | latent sites (unconstr.), and log p    |
| `dependences` | every open site, in the user's units   | dependences of sites; faults of data   |
| `density`     | x_0 (model units), u (unconstr.), key  | densities, moments, models, values     |
| `predict`     | the same                               | a new draw of every observed site      |

Latent sites are represented by unconstrained coordinates u. The transformation is applied at the
site, during the execution, so the support of a site may depend on any other.
"""

import functools
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..model import DiffusionModel
from .arguments import Arguments, traced
from .noiseless import Noiseless, num_entries, split_entries
from .program import Program, Values
from .structure import Structure
from .traced import restored
from .tracing import Evaluation, Known, Traces, trace_program


@final
class BoundProgram(eqx.Module):
    """A NumPyro program and its data.

    Args:
        program: a NumPyro model.
        args, kwargs: its arguments. New values of their arrays and floats do not recompile.
        data: observed values by site, in addition to the program's own `obs=`.

    Raises:
        TypeError, ValueError: the program cannot be conditioned; the message names the site and the
            remedy.
    """

    inputs: PyTree
    traces: Traces
    noiseless: Noiseless | None

    def __init__(
        self,
        program: Program,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
        data: Values | None = None,
    ) -> None:
        check_program(program)
        arguments = Arguments(args, kwargs or {}, data or {})
        self.traces, self.inputs = traced(functools.partial(trace_program, program), arguments)
        self.noiseless = _find_noiseless(self.traces, self.inputs)

    @property
    def structure(self) -> Structure:
        """Roles, shapes and stages of the sites."""
        return self.traces.structure

    def with_data(self, data: Values) -> "BoundProgram":
        """Return the program conditioned on other data; may be called in compiled code."""
        inputs = (self.inputs[0], data)
        noiseless = _find_noiseless(self.traces, inputs)
        return eqx.tree_at(
            lambda bound: (bound.inputs, bound.noiseless),
            self,
            (inputs, noiseless),
            is_leaf=lambda node: node is None,
        )

    # Evaluation, for one value of the latent sites ----------------------------------------------

    def evaluate(self, x_0: Values, latents: Values) -> Evaluation:
        """Return densities, moments and values at one x_0 (model units) and one u (unconstrained).

        Free sites, on which no density depends, are drawn with a fixed key.
        """
        return self.draw(jax.random.key(0), x_0, latents)

    def draw(self, key: Array, x_0: Values, latents: Values) -> Evaluation:
        """Return the result of `evaluate`, with free sites drawn from `key`."""
        return self.traces.density(key, self.inputs, x_0, latents, self.observed_entries())

    def draw_latents(self, key: Array) -> tuple[Values, Float[Array, ""]]:
        """Draw latent sites from their prior at x_0 = 0; also return their log-density in nats.

        x_0 is in model units, the latents and the density are in unconstrained coordinates. The
        log-density is that of the draw, without the masks and scales of the program.
        """
        drawn = self.traces.prior(key, self.inputs)
        names = self.structure.latents
        total = sum((drawn[name][1] for name in names), jnp.zeros(()))
        return {name: drawn[name][0] for name in names}, total

    def draw_observed(self, key: Array, x_0: Values, latents: Values) -> Values:
        """Draw every observed site that is not a factor or a Delta."""
        return self.traces.predict(key, self.inputs, x_0, latents, self.observed_entries())

    def model(self, evaluation: Evaluation, name: str) -> tuple[DiffusionModel, Array | None]:
        """Return the diffusion model of a site, and its context."""
        leaves, context = evaluation.models[name]
        skeleton, scaling = self.traces.skeletons[name]
        model = restored(leaves, skeleton)
        scaling = restored(evaluation.scalings[name], scaling)
        is_none = {"is_leaf": lambda node: node is None}  # the skeleton has no scaling
        return eqx.tree_at(lambda model: model.scaling, model, scaling, **is_none), context

    def origin(self) -> Values:
        """Return x_0 = 0 in model units; the state 0 for discrete data."""
        dtypes = self.traces.dtypes
        return {
            name: jnp.zeros(shape, dtypes[name]) for name, shape in self.structure.shapes.items()
        }

    def observed_entries(self) -> Known:
        """Return mask and values (user's units) of the noiseless entries; {} without any."""
        if self.noiseless is None:
            return {}
        shapes, dtypes = self.structure.shapes, self.traces.dtypes
        mask, values = self.noiseless.mask(shapes), self.noiseless.values(shapes)
        return {name: (mask[name], values[name].astype(dtypes[name])) for name in shapes}


def check_program(program: object) -> None:
    """Check that `program` is a NumPyro program.

    Raises:
        TypeError: `program` is not callable, or is a model.
    """
    if isinstance(program, DiffusionModel):
        raise TypeError(
            "program is a DiffusionModel; it must be a function that draws from it and observes "
            "something: def program(y=None): x = numpyro.sample('x', model()); "
            "numpyro.sample('y', dist.Normal(x, 0.1).to_event(1), obs=y)."
        )
    if not callable(program):
        raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")


def locations(traces: Traces, inputs: PyTree, numbers: np.ndarray) -> dict[str, dict[str, Array]]:
    """Return location, value and mask of each observed Delta, at diffusion entries `numbers`."""
    values = {name: jnp.zeros(x.shape, x.dtype) for name, x in traces.shapes.items()}
    for name, x in split_entries(traces.structure.shapes, jnp.asarray(numbers)).items():
        values[name] = x.astype(values[name].dtype)
    return traces.dependences(inputs, values)["shown"]


def _find_noiseless(traces: Traces, inputs: PyTree) -> Noiseless | None:
    structure = traces.structure
    if not structure.noiseless:
        return None
    # With numbered entries, the location of a Delta is the number of the entry that it observes.
    deltas = locations(traces, inputs, np.arange(num_entries(structure.shapes)))
    each = [deltas[name] for name in structure.noiseless]
    location, value, visible = (
        jnp.concatenate([site[part] for site in each]) for part in ("location", "value", "visible")
    )
    return Noiseless(jnp.where(visible, jnp.round(location).astype(int), 0), value, visible)
