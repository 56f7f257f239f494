"""The paper's conditioning rule: multiply every level of the chain by the likelihood.

The modified chain has p(x_t) r(x_t)^{a_t} at level t, with r evaluated at x_t in place of x_0, and
the kernel p(x_{t-1} | x_t) r(x_{t-1})^{a_{t-1}}, normalised. Where r is smooth, that is

    N(mu + Sigma grad log r^a (mu), Sigma)                       for real data,
    odds of a bit multiplied by r(x_i = 1)^a / r(x_i = 0)^a      the others at their current values.

(The rate printed in the paper for bits is not normalised.)

References:
    Sohl-Dickstein et al. 2015, section 2.5 (equations 20 to 23), table App. 1 and appendix C.
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..program import Values
from ..states import kernel_logits
from ..target import Estimates, Level, Target
from .base import AbstractTwist, Twisted, check_noise, check_one_stage, only_score, shifted
from .expected import coordinate_changes


class AbstractPower(eqx.Module):
    """Exponent a_t of the likelihood at level t; 1 at t = 0."""

    @abc.abstractmethod
    def at(self, t: Array | int, num_steps: int) -> Float[Array, ""]:
        """Return a_t."""


@final
class ConstantPower(AbstractPower):
    """a_t = 1 at every level, as in the paper's experiments (equation 23)."""

    def at(self, t: Array | int, num_steps: int) -> Float[Array, ""]:
        del num_steps
        return jnp.ones_like(jnp.asarray(t, dtype=float))


@final
class LinearPower(AbstractPower):
    """a_t = (T - t) / T: the start of the chain is unperturbed.

    The sampled distribution depends on the schedule: in the example of `Perturbation`, whose exact
    mean and variance are 0.5 and 0.5, they are 0.46 and 0.43 with `reciprocal`, and 0.60 and 0.38
    with `linear`, at 1,000 steps.
    """

    def at(self, t: Array | int, num_steps: int) -> Float[Array, ""]:
        return 1 - jnp.asarray(t, dtype=float) / num_steps


@final
class Perturbation(AbstractTwist):
    """psi_t(x_t) = r(x_t)^{a_t}: the likelihood evaluated at the noisy state.

    In `Guidance` it is the paper's perturbed kernel, which drops the normaliser of every step and
    so samples approximately p r^2 where the power is constant: for x ~ N(0, 1) observed as 1 with
    variance 1, the mean is 0.667 instead of 0.5 and the variance 0.333 instead of 0.5, for any
    number of steps. In `TwistedSMC` the normalisers are in the weights, and the draws are
    consistent. A step is normal only if r is smooth over it: precise observations require short
    steps.

    Args:
        power: `ConstantPower()` or `LinearPower()`.
    """

    power: AbstractPower = ConstantPower()

    def resolve(self, target: Target) -> "Perturbation":
        check_noise(target, self, remedy="MomentMatching() or ExpectedLikelihood()")
        check_one_stage(target, self, remedy="MomentMatching() or ExpectedLikelihood()")
        if target.sites(discrete=True) and target.sites(discrete=False):
            raise ValueError(
                "twist=Perturbation() perturbs real data or states, but not both in one program: "
                f"site {target.sites(discrete=False)[0]!r} is real and "
                f"{target.sites(discrete=True)[0]!r} is discrete; use twist=Mixed()."
            )
        for name, model in target.models.items():
            process = model.process
            if getattr(process, "num_states", process.num_categories) != process.num_categories:
                raise ValueError(
                    "twist=Perturbation() evaluates the likelihood at noisy states, but site "
                    f"{name!r} has an absorbing state that is not data; use "
                    "twist=ExpectedLikelihood()."
                )
        return self

    def has_jacobian(self, target: Target) -> bool:
        del target
        return False  # the denoiser is not differentiated

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        value = self.power.at(level.t, target.num_steps) * target.log_likelihood(x, latents)
        power = self.power.at(level.t - 1, target.num_steps)  # of the kernel, which draws x_{t-1}
        estimates = target.estimate(x, level, latents)
        if target.sites(discrete=True):
            return _perturbed_states(target, x, level, latents, estimates, value, power)
        kernels = {
            name: target.models[name].process.reverse(x[name], estimate, level.t)
            for name, estimate in estimates.items()
        }
        means = {name: kernel.mean for name, kernel in kernels.items()}
        score = jax.grad(lambda means: target.log_likelihood(means, latents))(means)
        # The kernel's mean shifts by Sigma grad log r^a, expressed as a shift of E[x_0 | x_t].
        shifts = {
            name: kernel.variance * power * score[name] / _coefficient(target, name, level)
            for name, kernel in kernels.items()
        }
        linear = only_score(ravel_pytree(score)[0])
        return Twisted(value, estimates, shifted(estimates, shifts), {}, linear)


def _coefficient(target: Target, name: str, level: Level) -> Float[Array, ""]:
    """Coefficient of E[x_0 | x_t] in the mean of p(x_{t-1} | x_t)."""
    process = target.models[name].process
    return process.coefficients(level.t).x_0  # pyright: ignore[reportAttributeAccessIssue]


def _perturbed_states(
    target: Target,
    x: Values,
    level: Level,
    latents: Array,
    estimates: Estimates,
    value: Array,
    power: Array,
) -> Twisted:
    """The twist for bits and categories: log-odds of each coordinate, the others unchanged."""
    logits = {
        name: kernel_logits(target.models[name].process.reverse(x[name], estimate, level.t))
        for name, estimate in estimates.items()
    }
    _, changes = coordinate_changes(
        {name: x[name] for name in logits}, logits, lambda b: target.log_likelihood(b, latents)
    )
    tilts = {name: power * changes[name] for name in changes}
    return Twisted(value, estimates, estimates, tilts, None)
