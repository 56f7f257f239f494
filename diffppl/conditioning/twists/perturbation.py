"""The paper's own way to condition: multiply every level of the chain by the likelihood.

The modified chain has p(x_t) r(x_t)^{a_t} at level t, with r read at x_t as if it were x_0, and the
kernel p(x_{t-1} given x_t) r(x_{t-1})^{a_{t-1}}, normalised. Where r is smooth, that is

    N(mu + Sigma grad log r^a (mu), Sigma)                       for real data,
    odds of a bit multiplied by r(x_i = 1)^a / r(x_i = 0)^a      the others at their current values.

(The rate that the paper prints for bits does not normalise.)

References:
    Sohl-Dickstein et al. 2015, section 2.5 (equations 20 to 23), table App. 1 and appendix C.
"""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..program import Values
from ..target import Target
from .base import AbstractTwist, Twisted, denoise, require_noise
from .expected import coordinate_changes, kernel_logits


class AbstractPower(eqx.Module):
    """The power a_t to which the likelihood is raised at level t; 1 at t = 0."""

    @abc.abstractmethod
    def at(self, t: Array, num_steps: int) -> Float[Array, ""]:
        """a_t."""


@final
class ConstantPower(AbstractPower):
    """r at every level: what the paper's experiments do (equation 23)."""

    def at(self, t: Array, num_steps: int) -> Float[Array, ""]:
        """1."""
        del num_steps
        return jnp.ones_like(jnp.asarray(t, dtype=float))


@final
class LinearPower(AbstractPower):
    """r^{(T - t) / T}: nothing is changed where the chain starts.

    What it samples depends on the schedule: for 0.5 and 0.5 (see `Perturbation`) 0.46 and 0.43 with
    `Reciprocal`, 0.60 and 0.38 with `Linear`, at 1,000 steps.
    """

    def at(self, t: Array, num_steps: int) -> Float[Array, ""]:
        """(T - t) / T."""
        return 1 - jnp.asarray(t, dtype=float) / num_steps


@final
class Perturbation(AbstractTwist):
    """psi_t(x_t) = r(x_t)^{a_t}: the likelihood read at the noisy state itself.

    In `Guidance` it is the paper's perturbed kernel, which drops the normaliser of every step and
    so samples near p r^2 where the power is constant: for x ~ N(0, 1) seen once as 1 with variance
    1 the mean comes out as 0.667 for 0.5 and the variance as 0.333 for 0.5, however many steps.
    In `TwistedSMC` the normalisers are in the weights, and the draws are consistent. A step is
    normal only if r is smooth over it: sharp observations need short steps.

    Args:
        power: `ConstantPower()` or `LinearPower()`.
    """

    power: AbstractPower = ConstantPower()

    def check(self, target: Target) -> None:
        """A program that noisy states can be put into."""
        require_noise(target, self, remedy="MomentMatching() or ExpectedLikelihood()")
        models = target.models()
        if len({model.process.support.is_discrete for model in models.values()}) > 1:
            raise ValueError(
                "twist=Perturbation() perturbs real data or states, but not both in one program: "
                f"{', '.join(f'{n!r} has {type(m.process).__name__}' for n, m in models.items())}."
            )
        for name, model in models.items():
            process = model.process
            if getattr(process, "num_states", process.num_categories) != process.num_categories:
                raise ValueError(
                    f"twist=Perturbation() reads the likelihood at noisy states, but site {name!r} "
                    "has an absorbing state that is not data; use twist=ExpectedLikelihood()."
                )

    def look(self, target: Target, x_t: Values, t: Array, latents: Array) -> Twisted:
        """See `AbstractTwist.look`."""
        value = self.power.at(t, target.num_steps) * target.log_likelihood(x_t, latents)
        estimates = denoise(target, x_t, t, latents)
        return Twisted(value, estimates, estimates, None)

    def propose(
        self,
        key: Array,
        target: Target,
        x_t: Values,
        twisted: Twisted,
        t: Array,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.propose`."""
        kernels = {
            name: model.process.reverse(x_t[name], twisted.estimates[name], t)
            for name, model in target.models().items()
        }
        power = self.power.at(t - 1, target.num_steps)
        return _perturbed(key, target, x_t, kernels, power, latents, given)

    def finish(
        self,
        key: Array,
        target: Target,
        x_1: Values,
        twisted: Twisted,
        latents: Array,
        *,
        given: Values | None = None,
    ) -> tuple[Values, Float[Array, ""]]:
        """See `AbstractTwist.finish`."""
        kernels = {
            name: model.process.edge(x_1[name], twisted.estimates[name])
            for name, model in target.models().items()
        }
        return _perturbed(key, target, x_1, kernels, jnp.ones(()), latents, given)


def _perturbed(
    key: Array,
    target: Target,
    x_t: Values,
    kernels: dict[str, Any],
    power: Array,
    latents: Array,
    given: Values | None,
) -> tuple[Values, Float[Array, ""]]:
    """A draw from kernels multiplied by the likelihood, and log kernels - log q."""
    if any(model.process.support.is_discrete for model in target.models().values()):
        return _perturbed_states(key, target, x_t, kernels, power, latents, given)
    means = {name: kernel.mean for name, kernel in kernels.items()}
    score = jax.grad(lambda means: target.log_likelihood(means, latents))(means)
    x: Values = {}
    log_ratio = jnp.zeros(())
    keys = jax.random.split(key, len(kernels))
    for (name, kernel), site_key in zip(kernels.items(), keys, strict=True):
        shift = kernel.variance * power * score[name]
        noise = jnp.sqrt(kernel.variance) * jax.random.normal(site_key, shift.shape, shift.dtype)
        x[name] = means[name] + shift + noise if given is None else given[name]
        step = x[name] - means[name] - shift
        log_ratio = log_ratio - jnp.sum((shift**2 + 2 * shift * step) / (2 * kernel.variance))
    return x, log_ratio


def _perturbed_states(
    key: Array,
    target: Target,
    x_t: Values,
    kernels: dict[str, Any],
    power: Array,
    latents: Array,
    given: Values | None,
) -> tuple[Values, Float[Array, ""]]:
    """The same for bits and categories: each coordinate's odds, the others as they are."""
    logits = {name: kernel_logits(kernel) for name, kernel in kernels.items()}
    _, changes = coordinate_changes(target, x_t, logits, latents)
    x: Values = {}
    log_ratio = jnp.zeros(())
    keys = jax.random.split(key, len(kernels))
    for (name, kernel), site_key in zip(kernels.items(), keys, strict=True):
        tilted = jax.nn.log_softmax(logits[name] + power * changes[name], axis=-1)
        drawn = jax.random.categorical(site_key, tilted, axis=-1)
        dtype = target.models()[name].process.dtype
        x[name] = jnp.asarray(drawn if given is None else given[name], dtype)
        chosen = jnp.take_along_axis(tilted, x[name][..., None], axis=-1)[..., 0]
        log_ratio = log_ratio + jnp.sum(kernel.log_prob(x[name]) - chosen)
    return x, log_ratio
