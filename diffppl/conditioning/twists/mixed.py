"""Moment matching inside expected likelihood, for real and discrete diffusion sites."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..program import Values
from ..states import most_probable, state_logits
from ..target import Estimates, Level, Target
from .base import AbstractTwist, Twisted, log_next_stage, shifted
from .expected import tilted_estimates
from .moments import MomentMatching


@final
class Mixed(AbstractTwist):
    """`MomentMatching` over the real sites inside `ExpectedLikelihood` over the discrete ones.

    With x the real sites, b the discrete ones, and v the most probable b,

        psi_t = r(v) prod_i sum_k p_i(k) r_i(k) / r(v),    r(b) = psi of the real sites at b,

    and the guided estimate of the real sites is averaged over each coordinate of b in turn. A stage
    with sites of one kind only uses that kind's twist.

    Args:
        real: the twist of the real sites.
    """

    real: MomentMatching = MomentMatching()

    def resolve(self, target: Target) -> "Mixed":
        return Mixed(self.real.with_covariance(target))

    def has_jacobian(self, target: Target) -> bool:
        del target
        return False  # discrete sites have kernels of their own, so a step cannot use it

    def evaluate(self, target: Target, x: Values, level: Level, latents: Array) -> Twisted:
        discrete = target.sites(level.stage, discrete=True)
        if not discrete:
            return self.real.evaluate(target, x, level, latents)
        all_estimates = target.estimate(x, level, latents)
        estimates = {name: all_estimates[name] for name in discrete}
        if not target.sites(level.stage, discrete=False):
            value, guided = tilted_estimates(
                target, estimates, lambda b: log_next_stage(self, target, x | b, level, latents)
            )
            return Twisted(value, estimates, guided, {}, None)

        def real_twist(b: Values) -> Twisted:
            return self.real.evaluate_with_states(target, x, level, latents, b)

        value, guided = tilted_estimates(target, estimates, lambda b: real_twist(b).log_value)
        real = real_twist(_modes(target, guided))
        return Twisted(
            value,
            estimates | real.estimates,
            guided | _averaged(target, guided, real, real_twist),
            {},
            real.linear,
        )


def _modes(target: Target, estimates: Estimates) -> Values:
    """The most probable states under discrete estimates."""
    return {
        name: most_probable(target.models[name].process, estimate)
        for name, estimate in estimates.items()
    }


def _averaged(
    target: Target, discrete: Estimates, real: Twisted, real_twist: Callable[[Values], Twisted]
) -> Estimates:
    """Guided estimates of the real sites, averaged over each coordinate of the discrete ones."""
    mode = _modes(target, discrete)
    # First order in the coordinates of b: base + sum_i E_{b_i}[guided(b_i) - base].
    base = {name: estimate.mean for name, estimate in real.guided.items()}
    total = base
    for name, estimate in discrete.items():
        logits = state_logits(target.models[name].process, estimate)
        probs = jax.nn.softmax(logits, axis=-1).reshape(-1, logits.shape[-1])

        def changed(index: Array, state: Array, name: str = name) -> Values:
            flat = mode[name].reshape(-1).at[index].set(state)
            guided = real_twist(mode | {name: flat.reshape(mode[name].shape)}).guided
            return {site: guided[site].mean - base[site] for site in base}

        coordinates, states = jnp.arange(probs.shape[0]), jnp.arange(probs.shape[1])
        table = jax.vmap(jax.vmap(changed, (None, 0)), (0, None))(coordinates, states)
        total = {site: total[site] + jnp.tensordot(probs, table[site], axes=2) for site in total}
    return shifted(real.guided, {site: total[site] - base[site] for site in total})
