"""The diffusion probabilistic model: a process, a network and what its output means.

    p(x_0, ..., x_T) = pi(x_T) prod_{t=2..T} p(x_{t-1} | x_t) p(x_0 | x_1)               (eqs. 4, 5)

`DiffusionModel` has a small interface: the network's estimate of x_0 (`estimate`, `denoise`), one
reverse step (`reverse_kernel`), both chains as NumPyro programs (`forward`, `reverse`, `guide`),
and `__call__`, which returns a NumPyro distribution. What follows from the estimate alone is in
`base`. `fit`, `sample`, `elbo`, `guided`, `clipped`, `respaced` and `Posterior` are functions and
classes that take a model.

There are two systems of units. The *user's units* are those of the data, and of x_0 in the public
interface. The *model's units* are those of the chain, x_1 .. x_T, brought to unit variance by
`scaling`. Sites and arguments called `x_t` are always in model units.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from ..checks.arguments import check_instance, check_shape, check_time
from ..checks.arrays import Numbers
from ..networks.layers.embedding import num_classes_of
from ..predictions.prediction import AbstractPrediction, default_prediction
from ..predictions.variance import replace_fitted, without_context
from ..processes import AbstractProcess
from ..processes.base import Time
from . import programs
from .base import AbstractModel
from .compatibility import (
    Network,
    check_context_scaling,
    check_parts,
    check_process,
    check_takes_context,
    raw_output,
)
from .distribution import DiffusionDistribution
from .scaling import Scaling


@final
class DiffusionModel(AbstractModel):
    """A diffusion probabilistic model of one event.

    Args:
        process: the forward chain, which fixes the kind of data and the number of steps.
        network: any callable `eqx.Module` with signature `(x_t, t, context) -> raw output`, for
            one event: `x_t` has shape `event_shape`, `t` is an integer in 1..T, `context` has
            shape `context_shape` or is None.
        event_shape: shape of one datum.
        prediction: interpretation of the raw output. By default `Velocity()` for real data,
            `Data()` (logits) for bits and categories, and `Data()` for an analytic denoiser.
        scaling: map from the chain's units to the user's; `fit` sets it from the data if it is
            None.
        context_shape: shape of the context of one event, if the network takes one.
        context_scaling: map from the network's units of a context to the user's. If it is None,
            `fit` sets it so that contexts have mean 0 and variance 1 for the network, column by
            column if they are vectors; one-hot vectors and labels are unchanged. `Scaling()` is
            the identity.

    Raises:
        ValueError: the network's output has the wrong shape (computed without running it), or the
            prediction is incompatible with the process.

    Example:
        >>> import jax, diffppl as dp
        >>> model = dp.DiffusionModel(
        ...     process=dp.GaussianDiffusion(dp.schedules.cosine(num_steps=100)),
        ...     network=dp.networks.MLP(event_shape=(2,), width=64, depth=2, key=jax.random.key(0)),
        ...     event_shape=(2,),
        ... )
        >>> model
        DiffusionModel(GaussianDiffusion, num_steps=100, event_shape=(2,), parameters=...)

    References:
        Sohl-Dickstein et al. 2015, section 2.2.
    """

    process: AbstractProcess
    network: Network
    prediction: AbstractPrediction
    scaling: Scaling | None
    context_scaling: Scaling | None
    event_shape: tuple[int, ...] = eqx.field(static=True)
    context_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        process: AbstractProcess,
        network: Network,
        event_shape: tuple[int, ...],
        *,
        prediction: AbstractPrediction | None = None,
        scaling: Scaling | None = None,
        context_shape: tuple[int, ...] | None = None,
        context_scaling: Scaling | None = None,
    ) -> None:
        check_process(process, network)
        if prediction is None:
            prediction = default_prediction(process, network)
        self.process, self.network = process, network
        self.prediction = check_instance("prediction", prediction, AbstractPrediction)
        self.event_shape = check_shape("event_shape", event_shape)
        self.context_shape = (
            None if context_shape is None else check_shape("context_shape", context_shape)
        )
        self.scaling = scaling
        self.context_scaling = context_scaling
        check_parts(process, network, prediction, scaling, self.event_shape, self.context_shape)
        check_context_scaling(context_scaling, self.context_shape)

    @property
    def needs_context(self) -> bool:
        if self.context_shape is None:
            return False
        # Networks do not declare it, so the network is traced without a context.
        try:
            shape = raw_output(self.process, self.network, self.event_shape, None).shape
        except Exception:
            return True
        return shape != self.prediction.output_shape(self.process, self.event_shape)

    @property
    def num_labels(self) -> int | None:
        return num_classes_of(self.network)

    def estimate(self, x_t: Array, t: Time, context: Array | None = None) -> PyTree:
        t = jnp.asarray(check_time(t, self.num_steps), jnp.int32)
        # A fitted reverse variance has separate values with and without a context.
        unconditional = replace_fitted(self.prediction, without_context)
        has_labels = self.num_labels is not None

        def single(x: Array, context: Array | None) -> PyTree:
            raw = self.network(x, t, context)
            if context is None:
                return unconditional.estimate(self.process, raw, x, t)
            estimate = self.prediction.estimate(self.process, raw, x, t)
            if not has_labels:
                return estimate
            without_label = unconditional.estimate(self.process, raw, x, t)  # for label -1
            return jax.tree.map(lambda a, b: jnp.where(context < 0, a, b), without_label, estimate)

        x_t = jnp.asarray(x_t)
        batch_shape = x_t.shape[: x_t.ndim - len(self.event_shape)]
        if (*batch_shape, *self.event_shape) != x_t.shape:
            raise ValueError(f"x_t has shape {x_t.shape}; it must end in {self.event_shape}.")
        if context is not None:
            context_shape = check_takes_context("context", self.context_shape)
            if self.context_scaling is not None:
                context = self.context_scaling.to_model(context)
            context = jnp.broadcast_to(context, (*batch_shape, *context_shape))
        # Networks and predictions take one event; each batch axis is a `vmap`.
        for _ in batch_shape:
            single = jax.vmap(single, in_axes=(0, None if context is None else 0))
        return single(x_t, context)

    def forward(self, x_0: ArrayLike) -> Array:
        """Run the forward chain from x_0 as a NumPyro program: see `programs.forward`."""
        return programs.forward(self, x_0)

    def reverse(
        self,
        context: Array | None = None,
        obs: Array | None = None,
        batch_shape: tuple[int, ...] = (),
    ) -> Array:
        """Run the reverse chain as a NumPyro program: see `programs.reverse`."""
        return programs.reverse(self, context, obs, batch_shape)

    def guide(self, context: Array | None = None, obs: Array | None = None) -> None:
        """Run the guide that matches `reverse` site by site: see `programs.guide`."""
        programs.guide(self, context, obs)

    def __call__(self, context: Numbers | None = None) -> "DiffusionDistribution[DiffusionModel]":
        """Return the model as a NumPyro distribution over x_0, in the user's units.

        Args:
            context: shape `(*batch, *context_shape)`; the distribution then has that batch shape.
        """
        return DiffusionDistribution(self, context)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(eqx.filter(self.network, eqx.is_inexact_array))
        return (
            f"DiffusionModel({type(self.process).__name__}, num_steps={self.num_steps}, "
            f"event_shape={self.event_shape}, parameters={sum(leaf.size for leaf in leaves):,})"
        )
