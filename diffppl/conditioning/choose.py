"""Default method of `Posterior` for a program and its data, with the reason for it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .compilation import jit_quickly
from .method import AbstractMethod
from .program import Values
from .rejuvenation import can_update_latents
from .smc import TwistedSMC
from .split_gibbs import SplitGibbs
from .states import num_states
from .target import Target
from .twists import Enumeration, LinearPower, Perturbation, PooledMomentMatching, Quadrature
from .twists.default import default_twist
from .twists.expected import coordinate_changes
from .twists.normal import MAX_DENSE

_MIN_PARTICLES = 1_000
_FEW_COORDINATES = 2
_MAX_EVENT = 20_000  # numbers of x_0, above which derivatives of 1,000 particles are too costly
_MAX_COUPLING = 0.1  # nats, largest additivity error at which coordinates count as uncoupled
_NUM_PAIRS = 16  # of random states, at which the coupling is evaluated


class Choice(NamedTuple):
    """A method, and the reason for choosing it in one sentence."""

    method: AbstractMethod
    reason: str


def choose(target: Target, num_samples: int) -> Choice:
    """Return a method for a program and its data, not yet resolved."""
    num_particles = max(_MIN_PARTICLES, num_samples)
    smc = TwistedSMC(num_particles)
    if target.sites(discrete=True):
        return _for_states(target, num_particles)
    size = sum(math.prod(shape) for shape in target.structure.shapes.values())
    one_stage = target.structure.num_stages == 1
    if size > _MAX_EVENT and one_stage and not target.structure.latents:
        return Choice(
            SplitGibbs(), f"x has {size:,} numbers: too many to differentiate every particle"
        )
    if size <= _FEW_COORDINATES and one_stage and not target.has_noiseless:
        return Choice(
            TwistedSMC(num_particles, twist=Quadrature()),
            f"x has {size} number{'s' * (size > 1)}: few enough for quadrature of any likelihood",
        )
    observed = target.num_observed()
    others = " and the latents are rejuvenated by MCMC" if can_update_latents(target) else ""
    if observed == 0:
        reason = "the observations have no moments, so the twist uses their gradient"
    elif observed <= MAX_DENSE:
        reason = f"few numbers are observed ({observed}), so each particle has their covariance"
    elif isinstance(default_twist(target, adaptive=True), PooledMomentMatching):
        reason = f"many numbers are observed ({observed}), so the particles share a covariance"
    else:
        reason = f"many numbers are observed ({observed}), so an isotropic covariance is used"
    return Choice(smc, reason + others)


def _for_states(target: Target, num_particles: int) -> Choice:
    smc = TwistedSMC(num_particles)
    if target.sites(discrete=False):
        return Choice(smc, "the data are real and discrete: Mixed() combines a twist for each kind")
    for twist, reason in _FOR_COUPLED_STATES:
        try:
            twist.resolve(target)
        except ValueError:
            continue  # unsupported: too many states, or x_t is not valid data, or noiseless entries
        if float(_coupling(jax.random.key(0), target)) <= _MAX_COUPLING:
            break
        return Choice(TwistedSMC(num_particles, twist=twist), reason)
    return Choice(smc, "the data are discrete: ExpectedLikelihood() averages over all states")


_FOR_COUPLED_STATES = (
    (Enumeration(), "the likelihood couples few coordinates: Enumeration() sums over joint states"),
    (
        Perturbation(LinearPower()),
        "the likelihood couples many coordinates of discrete data: Perturbation() conditions each "
        "on the others at every level",
    ),
)


@jit_quickly(optimization_level=0)
def _coupling(key: Array, target: Target) -> Float[Array, ""]:
    """Return the largest additivity error of log r over pairs of random states, in nats.

    For states x and x' it is |log r(x') - log r(x) - sum_i (log r(x with x'_i) - log r(x))|.
    """

    def additivity_error(key: Array) -> Array:
        key_x, key_u = jax.random.split(key)
        x, other = (_random_states(key, target) for key in jax.random.split(key_x))
        latents, _ = target.draw_latents(key_u)
        states = {
            name: jnp.zeros((*shape, int(np.max(_num_states(target, name)))))
            for name, shape in target.structure.shapes.items()
        }
        base, changes = coordinate_changes(x, states, lambda x: target.log_likelihood(x, latents))
        each = {
            name: jnp.take_along_axis(changes[name], other[name][..., None], axis=-1) for name in x
        }
        predicted = sum((jnp.sum(change) for change in each.values()), base)
        return jnp.abs(target.log_likelihood(other, latents) - predicted)

    return jnp.max(jax.vmap(additivity_error)(jax.random.split(key, _NUM_PAIRS)))


def _num_states(target: Target, name: str) -> Int[np.ndarray, "..."]:
    return num_states(target.models[name].process, target.structure.shapes[name])


def _random_states(key: Array, target: Target) -> Values:
    keys = target.split_key(key)
    return {
        name: jax.random.randint(keys[name], shape, 0, _num_states(target, name)).astype(
            target.models[name].process.dtype
        )
        for name, shape in target.structure.shapes.items()
    }
