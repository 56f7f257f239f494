"""Guided kernels: proposals q for the next state of the running stage.

A kernel has `sample(key)` and `log_ratio(x) = log p(x | x_t) - log q(x)`, with p the model's own
kernel. The difference is taken per coordinate before the sum, since the log-densities are large.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import Distribution

from .conditioned import ConditionedNormal
from .keys import split
from .program import Values
from .states import kernel_logits, state_logits
from .target import Estimates, Level, Target
from .twists import Twisted
from .twists.enumeration import JointStates
from .twists.expected import tilted_logits

Kernels = dict[str, Distribution]


@final
class GuidedKernel(eqx.Module):
    """p(x_{t-1} | x_t) with guided estimates of x_0 in place of the model's own, for t >= 2."""

    own: Kernels
    guided: Kernels
    tilts: Values
    dtypes: dict[str, np.dtype] = eqx.field(static=True)

    def __init__(self, target: Target, x: Values, twisted: Twisted, level: Level) -> None:
        def kernels(estimates: Estimates) -> Kernels:
            return {
                name: target.models[name].process.reverse(x[name], estimate, level.t)
                for name, estimate in estimates.items()
            }

        self.own, self.guided = kernels(twisted.estimates), kernels(twisted.guided)
        self.tilts = twisted.tilts
        self.dtypes = {name: target.models[name].process.dtype for name in self.own}

    def sample(self, key: Array) -> Values:
        """Draw x_{t-1} at the sites of the running stage."""
        keys = dict(zip(self.own, split(key, len(self.own)), strict=True))
        drawn = {}
        for name, kernel in self.guided.items():
            if name in self.tilts:
                value = jax.random.categorical(keys[name], self._tilted(name), axis=-1)
            else:
                value = kernel.sample(keys[name])
            drawn[name] = jnp.asarray(value, self.dtypes[name])
        return drawn

    def log_own(self, x: Values) -> Float[Array, ""]:
        """Return log p(x | x_t) of the model's own kernel."""
        return sum((jnp.sum(p.log_prob(x[name])) for name, p in self.own.items()), jnp.zeros(()))

    def log_ratio(self, x: Values) -> Float[Array, ""]:
        """Return log p(x | x_t) - log q(x)."""
        total = jnp.zeros(())
        for name, own in self.own.items():
            if name in self.tilts:
                log_q = _log_prob(self._tilted(name), x[name])
            else:
                log_q = self.guided[name].log_prob(x[name])
            # Subtract before summing: in float32 the sums of many coordinates lose digits.
            total = total + jnp.sum(jnp.subtract(own.log_prob(x[name]), log_q))
        return total

    def _tilted(self, name: str) -> Float[Array, "... states"]:
        return jax.nn.log_softmax(kernel_logits(self.guided[name]) + self.tilts[name], axis=-1)


def _log_prob(log_probs: Float[Array, "*shape states"], states: Array) -> Float[Array, "*shape"]:
    return jnp.take_along_axis(log_probs, states[..., None], axis=-1)[..., 0]


@final
class FinalKernel(eqx.Module):
    """p(x_0 | x_1) conditioned on the observations, for the sites of the running stage.

    In the last stage discrete sites are drawn from their kernel times the likelihood, per
    coordinate, or over all joint states if the twist is `Enumeration`. Real sites are then drawn
    from their kernel, conditioned on the discrete sites and on the observations, linearised at its
    mean. In an earlier stage discrete sites are drawn from their kernel times the likelihood ratios
    of the twist, and real sites from their own kernel. Noiseless entries are set to the observed
    values; their density under p is part of `log_ratio`.
    """

    target: Target
    x: Values
    latents: Float[Array, " p"]
    own: Kernels
    tilted: Values
    joint: JointStates | None
    normal: ConditionedNormal | None
    is_last: bool = eqx.field(static=True)

    def __init__(
        self, target: Target, x: Values, twisted: Twisted, stage: int, latents: Array
    ) -> None:
        self.target, self.x, self.latents = target, x, latents
        self.is_last = stage == target.structure.num_stages - 1
        self.own = {
            name: target.models[name].process.final_step(x[name], estimate)
            for name, estimate in twisted.estimates.items()
        }
        discrete, real = (target.sites(stage, discrete=kind) for kind in (True, False))
        self.joint, self.tilted = None, {}
        if twisted.is_joint:
            logits = {name: kernel_logits(kernel) for name, kernel in self.own.items()}
            self.joint = JointStates(target, logits, latents)
        elif discrete:
            self.tilted = self._tilted(twisted, discrete)
        # With discrete sites the conditional depends on their draw, and is computed afterwards.
        self.normal = None if discrete or not real else self._condition({})

    def sample(self, key: Array) -> Values:
        """Draw x_0 at the sites of the running stage."""
        if self.joint is not None:
            return self.joint.sample(key)
        key_real, *keys = split(key, 1 + len(self.tilted))
        drawn = {
            name: jax.random.categorical(key, logits, axis=-1).astype(self._dtype(name))
            for key, (name, logits) in zip(keys, self.tilted.items(), strict=True)
        }
        if len(drawn) < len(self.own):
            drawn = drawn | self._conditioned(drawn).sample(key_real)
        return drawn

    def log_own(self, x_0: Values) -> Float[Array, ""]:
        """Return log p(x_0 | x_1) of the model's own kernel."""
        return sum((jnp.sum(p.log_prob(x_0[name])) for name, p in self.own.items()), jnp.zeros(()))

    def log_ratio(self, x_0: Values) -> Float[Array, ""]:
        """Return log p(x_0 | x_1) - log q(x_0)."""
        if self.joint is not None:
            # q(x_0) = p(x_0 | x_1) r(x_0) / E[r(x_0) | x_1].
            log_likelihood = self.target.log_likelihood(self.x | x_0, self.latents)
            # Where no state is possible, both are -inf, and q = p.
            log_mean = self.joint.log_mean()
            return jnp.where(jnp.isneginf(log_mean), 0.0, log_mean - log_likelihood)
        total = jnp.zeros(())
        for name, logits in self.tilted.items():
            log_q = _log_prob(logits, x_0[name])
            total = total + jnp.sum(jnp.subtract(self.own[name].log_prob(x_0[name]), log_q))
        if len(self.tilted) < len(self.own):
            states = {name: x_0[name] for name in self.tilted}
            total = total + self._conditioned(states).log_ratio(x_0)
        return total

    def _dtype(self, name: str) -> np.dtype:
        return self.target.models[name].process.dtype

    def _tilted(self, twisted: Twisted, names: tuple[str, ...]) -> Values:
        logits = {name: kernel_logits(self.own[name]) for name in names}
        if not self.is_last:
            # The likelihood depends on later stages; the twist gives its ratios.
            return {
                name: jax.nn.log_softmax(logits[name] + self._twist_ratio(twisted, name), axis=-1)
                for name in names
            }
        # Real sites are at the means of their kernels, since they are drawn afterwards.
        means = {name: kernel.mean for name, kernel in self.own.items() if name not in names}
        _, tilted = tilted_logits(
            self.target,
            logits,
            lambda b: self.target.log_likelihood(self.x | means | b, self.latents),
        )
        return tilted

    def _twist_ratio(self, twisted: Twisted, name: str) -> Float[Array, "... states"]:
        process = self.target.models[name].process
        guided = state_logits(process, twisted.guided[name])
        return guided - state_logits(process, twisted.estimates[name])

    def _conditioned(self, states: Values) -> ConditionedNormal:
        return self._condition(states) if self.normal is None else self.normal

    def _condition(self, states: Values) -> ConditionedNormal:
        kernels = {name: own for name, own in self.own.items() if name not in self.tilted}
        return ConditionedNormal(
            self.target, kernels, self.x | states, self.latents, observe=self.is_last
        )
