"""A program bound to its arguments: what its sites are, and its densities as functions of them.

Binding executes the program four times on abstract values and keeps jaxprs; nothing else in the
room executes it again.

| function      | inputs                                 | outputs                                |
| ------------- | -------------------------------------- | -------------------------------------- |
| `prior`       | key                                    | latent sites, unconstrained, and log p |
| `dependences` | every open site, in the user's units   | what depends on what; faults of data   |
| `density`     | x_0 (model units), u (unconstr.), key  | densities, moments, models, values     |
| `predict`     | the same                               | a new draw of every observed site      |

Latent sites are held in unconstrained coordinates u. The transformation takes place at the site, as
part of the execution, so the support of a site may depend on any other.
"""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
        args, kwargs: its arguments. Arrays and floats in them may change without a new compilation.
        data: values to condition the program on, by site, beside its own `obs=`.

    Raises:
        TypeError, ValueError: the program cannot be conditioned; the message names the site and the
            remedy.
    """

    inputs: Any
    traces: Traces
    noiseless: Noiseless | None

    def __init__(
        self,
        program: Program,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        data: Values | None = None,
    ) -> None:
        check_program(program)
        self.traces, self.inputs = traced(
            lambda arguments: (trace_program(program, arguments), arguments.inputs),
            Arguments(args, kwargs or {}, data or {}),
        )
        self.noiseless = _find_noiseless(self.traces, self.inputs)

    @property
    def structure(self) -> Structure:
        """What the sites are."""
        return self.traces.structure

    def with_data(self, data: Values) -> "BoundProgram":
        """The same program conditioned on other data; may be called in compiled code."""
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
        """Densities, moments and values at one x_0 (model units) and one u (unconstrained).

        Every call draws the same values of the free sites, on which no density depends.
        """
        return self.draw(jax.random.key(0), x_0, latents)

    def draw(self, key: Array, x_0: Values, latents: Values) -> Evaluation:
        """`evaluate` with new draws of the free sites."""
        return self.traces.density(key, self.inputs, x_0, latents, self.known())

    def draw_latents(self, key: Array) -> tuple[Values, Float[Array, ""]]:
        """Latent sites from their prior given x_0 = 0 in model units, and their log-density, nats.

        Both in unconstrained coordinates. The log-density is that of the draw: masks and scales of
        the program do not enter.
        """
        drawn = self.traces.prior(key, self.inputs)
        names = self.structure.latents
        total = sum((drawn[name][1] for name in names), jnp.zeros(()))
        return {name: drawn[name][0] for name in names}, total

    def draw_observed(self, key: Array, x_0: Values, latents: Values) -> Values:
        """A new draw of every observed site that is not a factor or a Delta."""
        return self.traces.predict(key, self.inputs, x_0, latents, self.known())

    def model(self, evaluation: Evaluation, name: str) -> tuple[DiffusionModel, Array | None]:
        """The diffusion model of a site, and its context."""
        leaves, context = evaluation.models[name]
        skeleton, scaling = self.traces.skeletons[name]
        model = restored(leaves, skeleton)
        scaling = restored(evaluation.scalings[name], scaling)
        is_none = {"is_leaf": lambda node: node is None}
        return eqx.tree_at(lambda model: model.scaling, model, scaling, **is_none), context

    def origin(self) -> Values:
        """x_0 = 0 in model units; the state 0 for discrete data."""
        dtypes = self.traces.dtypes
        return {
            name: jnp.zeros(shape, dtypes[name]) for name, shape in self.structure.shapes.items()
        }

    def known(self) -> Known:
        """Mask and values, in the user's units, of the entries that Deltas show; {} without any."""
        if self.noiseless is None:
            return {}
        shapes, dtypes = self.structure.shapes, self.traces.dtypes
        mask, values = self.noiseless.mask(shapes), self.noiseless.values(shapes)
        return {name: (mask[name], values[name].astype(dtypes[name])) for name in shapes}


def check_program(program: Any) -> None:
    """Refuse what is not a NumPyro program.

    Raises:
        TypeError: not callable, or a model itself.
    """
    if isinstance(program, DiffusionModel):
        raise TypeError(
            "program is a DiffusionModel; it must be a function that draws from it and observes "
            "something: def program(y=None): x = numpyro.sample('x', model()); "
            "numpyro.sample('y', dist.Normal(x, 0.1).to_event(1), obs=y)."
        )
    if not callable(program):
        raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")


def locations(traces: Traces, inputs: Any, numbers: np.ndarray) -> dict[str, dict[str, Array]]:
    """What each observed Delta shows of diffusion sites whose entries are `numbers`."""
    values = {name: jnp.zeros(x.shape, x.dtype) for name, x in traces.shapes.items()}
    for name, x in split_entries(traces.structure.shapes, jnp.asarray(numbers)).items():
        values[name] = x.astype(values[name].dtype)
    return traces.dependences(inputs, values)["shown"]


def _find_noiseless(traces: Traces, inputs: Any) -> Noiseless | None:
    structure = traces.structure
    if not structure.noiseless:
        return None
    shown = locations(traces, inputs, np.arange(num_entries(structure.shapes)))
    each = [shown[name] for name in structure.noiseless]
    location, value, visible = (
        jnp.concatenate([site[part] for site in each]) for part in ("location", "value", "visible")
    )
    return Noiseless(jnp.where(visible, jnp.round(location).astype(int), 0), value, visible)
