"""Adapter from a diffusion model to a NumPyro distribution.

A class cannot be both an `eqx.Module` and a NumPyro `Distribution` (their metaclasses conflict), so
the adapter contains a model: its arrays as a pytree field and the rest as auxiliary data. It passes
through `jit`, `vmap` and `scan` like any other distribution.
"""

import warnings
from typing import Generic, TypeVar, final

import equinox as eqx
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import Distribution, constraints

from ..checks.arguments import check_instance, check_key
from ..checks.arrays import Numbers
from ..processes import GaussianDiffusion
from .ancestral import ancestral
from .base import AbstractModel
from .flow_density import log_density
from .inputs import as_context

Model = TypeVar("Model", bound=AbstractModel)


@final
class DiffusionDistribution(Distribution, Generic[Model]):
    """p(x_0) of a diffusion model, in the user's units.

    Constructed by calling a model: `model()`, or `model(context)`. Sampling runs the reverse chain.
    `log_prob` of a Gaussian model is the density of its probability flow: an ODE solve by diffrax
    with the exact trace, at one network derivative per coordinate and step. A discrete model has no
    such density, and `log_prob` raises. NUTS and SVI differentiate `log_prob`, which is expensive
    and issues a warning: use `FlowReparam` or `ParticleGibbs` instead.

    Example:
        >>> def program(y=None):
        ...     x = numpyro.sample("x", model())
        ...     numpyro.sample("y", dist.Normal(x.mean(), 0.1), obs=y)
    """

    pytree_data_fields = ("_arrays", "context")
    pytree_aux_fields = ("_static",)

    def __init__(
        self,
        model: Model,
        context: Numbers | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_instance("model", model, AbstractModel)
        context = as_context("context", context, model)
        batch_shape: tuple[int, ...] = ()  # that of the contexts
        if context is not None:
            batch_shape = context.shape[: context.ndim - len(model.context_shape or ())]
        self._arrays, self._static = eqx.partition(model, eqx.is_array)
        self.context = context
        super().__init__(batch_shape, model.event_shape, validate_args=validate_args)

    @property
    def model(self) -> Model:
        """The diffusion model."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """Support of the process, over the whole event."""
        return constraints.independent(self.model.process.support, len(self.event_shape))

    @property
    def is_discrete(self) -> bool:
        """Whether x_0 consists of bits or categories."""
        return self.model.process.support.is_discrete

    def sample(self, key: Array | np.ndarray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw ancestral samples of shape `sample_shape + batch_shape + event_shape`."""
        shape = (*sample_shape, *self.batch_shape)
        return _draw(check_key(key), self.model, shape, self.context)

    def log_prob(self, value: ArrayLike) -> Float[Array, "..."]:
        """Return log p(value) in nats, by the probability flow; Gaussian models only.

        Raises:
            NotImplementedError: a discrete model, for which only bounds are available.
        """
        model = self.model
        if not isinstance(model.process, GaussianDiffusion):
            raise NotImplementedError(
                f"a model with {type(model.process).__name__} has no log_prob: its likelihood is a "
                "sum over all paths. Use diffppl.elbo for a lower bound, diffppl.importance_bound "
                "for a tighter one, and diffppl.Posterior to condition."
            )
        if _is_differentiated(value):
            warnings.warn(
                "the log-density of a diffusion model is differentiated: each gradient is taken "
                "through an ODE solve, and takes minutes to compile. For NUTS and SVI "
                "reparameterise the site, numpyro.handlers.reparam(program, config={name: "
                "diffppl.FlowReparam()}), or use diffppl.ParticleGibbs as a block of "
                "numpyro.infer.Gibbs.",
                stacklevel=2,
            )
        return log_density(model, value, self.context)


# Compiled as a whole, because NumPyro also samples outside of `jit`.
@eqx.filter_jit
def _draw(key: Array, model: AbstractModel, shape: tuple[int, ...], context: Array | None) -> Array:
    return model.to_user(ancestral(key, model, shape, context))


def _is_differentiated(value: ArrayLike) -> bool:
    """Return whether a value is being differentiated."""
    # JAX has no public test for it.
    return type(value).__name__ in ("JVPTracer", "LinearizeTracer")
