"""The adapter that makes a diffusion model a NumPyro distribution.

One class cannot be both an `eqx.Module` and a NumPyro `Distribution`, so this one holds a model:
its arrays as a pytree field, the rest as auxiliary data, so that it passes through `jit`, `vmap`
and `scan` like any other distribution.
"""

import warnings
from typing import Any, final

import equinox as eqx
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import Distribution, constraints

from .checks.arguments import check_instance, check_key
from .likelihood.flow import flow_log_density
from .model import DiffusionModel
from .model.inputs import as_context
from .processes import GaussianDiffusion
from .samplers.ancestral import ancestral


@final
class DiffusionDistribution(Distribution):
    """p(x_0) of a diffusion model, in the user's units.

    Made by calling a model: `model()`, or `model(context)`. Sampling runs the reverse chain.
    `log_prob` is, for a Gaussian model, the density of its probability flow (an ODE solve on
    diffrax, exact trace: as many network derivatives as coordinates at each of its steps); for a
    discrete model there is no such density and it raises. NUTS and SVI differentiate it, at a cost
    of which it warns: give them `FlowReparam` or `ParticleGibbs`.

    Example:
        >>> def program(y=None):
        ...     x = numpyro.sample("x", model())
        ...     numpyro.sample("y", dist.Normal(x.mean(), 0.1), obs=y)
    """

    pytree_data_fields = ("_arrays", "context")
    pytree_aux_fields = ("_static",)

    def __init__(
        self,
        model: DiffusionModel,
        context: Any = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_instance("model", model, DiffusionModel)
        context = as_context("context", context, model)
        batch_shape: tuple[int, ...] = ()
        if context is not None:
            batch_shape = context.shape[: context.ndim - len(model.context_shape or ())]
        self._arrays, self._static = eqx.partition(model, eqx.is_array)
        self.context = context
        super().__init__(batch_shape, model.event_shape, validate_args=validate_args)

    @property
    def model(self) -> DiffusionModel:
        """The model."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self) -> constraints.Constraint:
        """The process's support, over the whole event."""
        return constraints.independent(self.model.process.support, len(self.event_shape))

    @property
    def is_discrete(self) -> bool:
        """Whether x_0 is made of bits or categories."""
        return self.model.process.support.is_discrete

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Ancestral draws from the model, shape `sample_shape + batch_shape + event_shape`."""
        shape = (*sample_shape, *self.batch_shape)
        return _draw(check_key(key), self.model, shape, self.context)

    def log_prob(self, value: ArrayLike) -> Float[Array, "..."]:
        """log p(value) in nats, by the probability flow; Gaussian models only.

        Raises:
            NotImplementedError: a discrete model, which has a bound but no such density.
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
                "the log-density of a diffusion model is differentiated: each gradient passes "
                "through an ordinary differential equation, and takes minutes to compile. For NUTS "
                "and SVI reparameterise the site, numpyro.handlers.reparam(program, config={name: "
                "diffppl.FlowReparam()}), or use diffppl.ParticleGibbs as a block of "
                "numpyro.infer.Gibbs.",
                stacklevel=2,
            )
        return flow_log_density(model, value, self.context)


@eqx.filter_jit
def _draw(
    key: Array, model: DiffusionModel, shape: tuple[int, ...], context: Array | None
) -> Array:
    return model.to_user(ancestral(key, model, shape, context))


def _is_differentiated(value: ArrayLike) -> bool:
    """Whether a value is traced for a derivative; JAX has no public test for it."""
    return type(value).__name__ in ("JVPTracer", "LinearizeTracer")
