"""Diffusion sites as functions of plain noise, for NumPyro's own inference.

A diffusion prior over real data is a push-forward: noise z ~ N(0, I) goes in, x_0 comes out. A
*reparameterisation* replaces the site by its noise and a deterministic value,

    z ~ N(0, I),    x = to_user(g(z)),    p(z given y) proportional to N(z; 0, I) r(x(z)),

and whatever infers continuous latents (NUTS, SVI with any autoguide, Laplace) then infers z, whose
prior density costs nothing: no log p(x_0) is ever evaluated. Two maps g are offered:

    FlowReparam     the probability flow, z = x_T            exact for the flow's own density
    ChainReparam    z = (x_T, eps_T, .., eps_1) and          exact for the chain
                    x_{t-1} = mean(x_t) + scale(x_t) eps_t

Both are *local*: a sampler that follows gradients crosses from one mode of the posterior to another
no better in z than in x. Where a posterior may have several, use `Posterior` with `TwistedSMC`, or
compare chains that were started apart.

References:
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 4.3 (the flow).
    Gorinova, Moore and Hoffman 2019, "Automatic Reparameterisation of Probabilistic Programs".
"""

import functools
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.infer.reparam import Reparam

from ..model import DiffusionModel
from ..samplers.flow_ode import Integrator, noise_to_data
from .program import diffusion_distribution


@final
class FlowReparam(eqx.Module, Reparam):
    """A diffusion site as the image of its noise under the probability flow.

    The site `name` becomes `f"{name}_base"`, N(0, I) of the site's own shape, and a deterministic
    value. The posterior is that of the flow, whose density is `model().log_prob`; the error of the
    integrator is the only bias. A chain of many steps and its flow agree closely, a short one does
    not: see `diffppl.samplers.flow_ode`.

    It does not cross modes. NUTS on `f"{name}_base"` moves well within one mode of the posterior;
    between modes that gradients do not join, only the start of each chain decides.

    Args:
        integrator: how the differential equation is solved. Gradients go through it, so that
            loose tolerances cost accuracy twice: NUTS wants the value and its gradient to agree.

    Raises:
        ValueError: when the program runs: the site is not a diffusion model of real data, or is
            observed.

    Example:
        >>> moved = numpyro.handlers.reparam(program, config={"x": dp.FlowReparam()})
        >>> mcmc = MCMC(NUTS(moved), num_warmup=500, num_samples=1_000)
        >>> mcmc.run(jax.random.key(0), y=0.3)
        >>> idata = az.from_numpyro(mcmc)                 # "x" and "x_base"
    """

    integrator: Integrator = Integrator()

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Array]:
        model, batch_shape, context = _checked(self, name, fn, obs)
        noise = _noise(name, fn.event_dim, (*batch_shape, *model.event_shape))
        x_0 = noise_to_data(model, noise, context, integrator=self.integrator)
        return None, model.to_user(x_0)


@final
class ChainReparam(eqx.Module, Reparam):
    """A diffusion site as the image of all the noise that its reverse chain uses.

    The site `name` becomes `f"{name}_base"`, N(0, I) of shape `(*batch, T + 1, *event_shape)`: x_T,
    then the noise of each step from t = T to 1, the final step last; and a deterministic value. The
    posterior is exactly that of the chain, the one that `TwistedSMC` draws from.

    There are T + 1 numbers for each coordinate of x, and each gradient costs T network calls, so
    that a short chain serves best. Memory grows by one x_t a step, whatever the network.

    It does not cross modes: see `FlowReparam`.

    Args:
        num_steps: read the chain at so many of its levels (`model.respace`); None for all. The
            posterior is then that of the shorter chain.

    Raises:
        ValueError: when the program runs: the site is not a diffusion model of real data, or is
            observed; or the chain has fewer than `num_steps` steps.

    Example:
        >>> config = {"x": dp.ChainReparam(num_steps=20)}
        >>> guide = AutoNormal(numpyro.handlers.reparam(program, config=config))
    """

    num_steps: int | None = eqx.field(static=True, default=None)

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Array]:
        model, batch_shape, context = _checked(self, name, fn, obs)
        if self.num_steps is not None:
            model = model.respace(self.num_steps)
        shape = (*batch_shape, model.num_steps + 1, *model.event_shape)
        # The step is one more axis of the event, so that plates see the batch that they expect.
        noise = _noise(name, fn.event_dim + 1, shape)
        x_0 = _run_chain(model, jnp.moveaxis(noise, len(batch_shape), 0), context)
        return None, model.to_user(x_0)


def _run_chain(
    model: DiffusionModel, noise: Float[Array, "..."], context: Array | None
) -> Float[Array, "..."]:
    """x_0 in model units; `noise` has x_T and the steps' noise on its leading axis."""

    def move(kernel: dist.Distribution, eps: Array) -> Array:
        return jnp.asarray(kernel.mean + jnp.sqrt(kernel.variance) * eps, eps.dtype)

    # Only x_t is kept for the gradient; what happens within a step is computed again.
    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan needs no such prevention
    def step(x_t: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        t, eps = inputs
        return move(model.reverse_kernel(x_t, t, context), eps), None

    times = jnp.arange(model.num_steps, 1, -1)
    x_1, _ = jax.lax.scan(step, noise[0], (times, noise[1:-1]))
    return move(model.reverse_kernel(x_1, 1, context), noise[-1])


def _noise(name: str, event_dim: int, shape: tuple[int, ...]) -> Array:
    base = dist.Normal(jnp.zeros(()), jnp.ones(())).expand(shape).to_event(event_dim)
    return jnp.asarray(numpyro.sample(f"{name}_base", base))


def _checked(
    reparam: Reparam, name: str, fn: Any, obs: Any
) -> tuple[DiffusionModel, tuple[int, ...], Array | None]:
    """The model at a site, the shape of its batch (plates and `to_event` counted), its context."""
    what = type(reparam).__name__
    found = diffusion_distribution(fn)
    if found is None:
        raise ValueError(
            f"site {name!r} has a {type(fn).__name__}; {what} is for a diffusion model, as in "
            f"numpyro.sample({name!r}, model()), at most under plates, expand and to_event."
        )
    model = found.model
    if model.process.support.is_discrete:
        raise ValueError(
            f"site {name!r} is a model with {type(model.process).__name__}: {what} is for real "
            "data, because bits and categories are no smooth function of noise. Use "
            "diffppl.Posterior with TwistedSMC, or ParticleGibbs."
        )
    if obs is not None:
        raise ValueError(
            f"site {name!r} is observed, so that its noise is not free; {what} is for latent "
            "sites. Leave it latent and observe something that depends on it, or use "
            "diffppl.elbo for its likelihood."
        )
    shape = fn.shape()
    batch_shape = shape[: len(shape) - len(model.event_shape)]
    context = found.context
    if context is not None and model.context_shape is not None:
        context = jnp.broadcast_to(context, (*batch_shape, *model.context_shape))
    return model, batch_shape, context
