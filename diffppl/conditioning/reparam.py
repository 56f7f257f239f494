"""Reparameterisations of diffusion sites by standard normal noise, for NumPyro's inference.

A diffusion prior over real data is the push-forward of noise z ~ N(0, I) to x_0. A
*reparameterisation* replaces the site by its noise and a deterministic value,

    z ~ N(0, I),    x = to_user(g(z)),    p(z | y) proportional to N(z; 0, I) r(x(z)),

so that any algorithm for continuous latents (NUTS, SVI with any autoguide, Laplace) infers z. The
prior density of z is that of a standard normal; log p(x_0) is not evaluated. There are two maps g:

    FlowReparam     the probability flow, z = x_T            exact for the density of the flow
    ChainReparam    z = (x_T, eps_T, .., eps_1) and          exact for the chain
                    x_{t-1} = mean(x_t) + scale(x_t) eps_t

Gradient-based samplers are *local* and mix between modes of the posterior no better in z than in x.
If a posterior may be multimodal, use `Posterior` with `TwistedSMC`, or compare chains with
overdispersed starting points.

References:
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3 (the flow).
    Gorinova, Moore and Hoffman 2019, "Automatic Reparameterisation of Probabilistic Programs".
"""

import functools
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro.infer.reparam import Reparam

from ..model import DiffusionModel, respaced
from ..model.probability_flow import Integrator, noise_to_data
from ..processes.support import check_real
from .program import diffusion_distribution


@final
class FlowReparam(eqx.Module, Reparam):
    """Reparameterisation of a diffusion site by the probability flow.

    The site `name` is replaced by `f"{name}_base"`, N(0, I) of the same shape, and a deterministic
    value. The posterior is that of the flow, whose density is `model().log_prob`; the error of the
    integrator is the only bias. Flow and chain agree closely for chains of many steps, but not for
    short ones: see `diffppl.model.probability_flow`.

    NUTS on `f"{name}_base"` mixes well within one mode of the posterior. Between well-separated
    modes it does not mix: the mode of each chain is determined by its starting point.

    Args:
        integrator: solver of the ordinary differential equation. Gradients are propagated through
            it, and NUTS requires the value and its gradient to be consistent, so that loose
            tolerances affect both.

    Raises:
        ValueError: at execution of the program, if the site is not a diffusion model of real data,
            or is observed.

    Example:
        >>> moved = numpyro.handlers.reparam(program, config={"x": dp.FlowReparam()})
        >>> mcmc = MCMC(NUTS(moved), num_warmup=500, num_samples=1_000)
        >>> mcmc.run(jax.random.key(0), y=0.3)
        >>> idata = az.from_numpyro(mcmc)                 # "x" and "x_base"
    """

    integrator: Integrator = Integrator()

    def __call__(
        self, name: str, fn: dist.Distribution, obs: ArrayLike | None
    ) -> tuple[None, Array]:
        model, batch_shape, context = _check_site(self, name, fn, obs)
        noise = _noise(name, fn.event_dim, (*batch_shape, *model.event_shape))
        x_0 = noise_to_data(model, noise, context, integrator=self.integrator)
        return None, model.to_user(x_0)


@final
class ChainReparam(eqx.Module, Reparam):
    """Reparameterisation of a diffusion site by all the noise of its reverse chain.

    The site `name` is replaced by `f"{name}_base"`, N(0, I), and a deterministic value. The noise
    has shape `(*batch, T + 1, *event_shape)`: x_T, then the noise of each step from t = T to 1. The
    posterior is exactly that of the chain, as for `TwistedSMC`.

    The dimension is T + 1 times that of x, and each gradient costs T network evaluations, so short
    chains are preferable. Memory grows by one x_t per step, independently of the network.

    It does not mix between modes: see `FlowReparam`.

    Args:
        num_steps: number of steps to respace the chain to (`respaced`); None for all. The
            posterior is then that of the shorter chain.

    Raises:
        ValueError: at execution of the program, if the site is not a diffusion model of real data,
            or is observed, or if the chain has fewer than `num_steps` steps.

    Example:
        >>> config = {"x": dp.ChainReparam(num_steps=20)}
        >>> guide = AutoNormal(numpyro.handlers.reparam(program, config=config))
    """

    num_steps: int | None = eqx.field(static=True, default=None)

    def __call__(
        self, name: str, fn: dist.Distribution, obs: ArrayLike | None
    ) -> tuple[None, Array]:
        model, batch_shape, context = _check_site(self, name, fn, obs)
        model = respaced(model, self.num_steps)
        shape = (*batch_shape, model.num_steps + 1, *model.event_shape)
        # The axis of steps belongs to the event, so that the batch shape agrees with the plates.
        noise = _noise(name, fn.event_dim + 1, shape)
        x_0 = _run_chain(model, jnp.moveaxis(noise, len(batch_shape), 0), context)
        return None, model.to_user(x_0)


def _run_chain(
    model: DiffusionModel, noise: Float[Array, "..."], context: Array | None
) -> Float[Array, "..."]:
    """Return x_0 in model units; `noise` is x_T and the noise of the steps, on a leading axis."""

    def sample(kernel: dist.Distribution, eps: Array) -> Array:
        return jnp.asarray(kernel.mean + jnp.sqrt(kernel.variance) * eps, eps.dtype)

    # Only x_t is stored for the gradient; the network is evaluated again in the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)  # unnecessary inside a scan
    def step(x_t: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        t, eps = inputs
        return sample(model.reverse_kernel(x_t, t, context), eps), None

    times = jnp.arange(model.num_steps, 1, -1)
    x_1, _ = jax.lax.scan(step, noise[0], (times, noise[1:-1]))
    # A static t = 1 selects the final step.
    return sample(model.reverse_kernel(x_1, 1, context), noise[-1])


def _noise(name: str, event_dim: int, shape: tuple[int, ...]) -> Array:
    base = dist.Normal(jnp.zeros(()), jnp.ones(())).expand(shape).to_event(event_dim)
    return jnp.asarray(numpyro.sample(f"{name}_base", base))


def _check_site(
    reparam: Reparam, name: str, fn: dist.Distribution, obs: ArrayLike | None
) -> tuple[DiffusionModel, tuple[int, ...], Array | None]:
    """Return the model of a site, its batch shape (with plates and `to_event`), and its context."""
    what = type(reparam).__name__
    found = diffusion_distribution(fn)
    if found is None:
        raise ValueError(
            f"site {name!r} has a {type(fn).__name__}; {what} is for a diffusion model, as in "
            f"numpyro.sample({name!r}, model()), optionally under plates, expand and to_event."
        )
    model = found.model
    remedy = (
        ", and discrete data are not a smooth function of noise. Use diffppl.Posterior with "
        "TwistedSMC, or ParticleGibbs"
    )
    check_real(what, model.process, remedy, subject=f"site {name!r} is a model with")
    if obs is not None:
        raise ValueError(
            f"site {name!r} is observed, so its noise is not a free variable; {what} is for latent "
            "sites. Leave it latent and observe something that depends on it, or use "
            "diffppl.elbo for its likelihood."
        )
    shape = fn.shape()
    batch_shape = shape[: len(shape) - len(model.event_shape)]
    context = found.context
    if context is not None and model.context_shape is not None:
        context = jnp.broadcast_to(context, (*batch_shape, *model.context_shape))
    return model, batch_shape, context
