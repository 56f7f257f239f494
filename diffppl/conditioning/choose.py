"""The method that `Posterior` takes if the user names none, and why."""

import math
from typing import NamedTuple

from .method import AbstractMethod
from .moves import can_move
from .smc import TwistedSMC
from .split_gibbs import SplitGibbs
from .target import Target
from .twists import Quadrature
from .twists.moments import MOST_FOR_TWEEDIE

_FEWEST_PARTICLES = 1_000
_FEW_COORDINATES = 2
_LARGEST_EVENT = 20_000  # numbers, above which a thousand particles and their derivatives are many


class Choice(NamedTuple):
    """A method, and the reason for it in one sentence."""

    method: AbstractMethod
    reason: str


def choose(target: Target, num_samples: int) -> Choice:
    """A method for a program; abstract values only."""
    num_particles = max(_FEWEST_PARTICLES, num_samples)
    smc = TwistedSMC(num_particles)
    models = target.models()
    if any(model.process.support.is_discrete for model in models.values()):
        return Choice(smc, "the data are discrete: ExpectedLikelihood() looks ahead at every state")
    size = sum(math.prod(site.shape) for site in target.sites.diffusion.values())
    if size > _LARGEST_EVENT and not target.sites.latents:
        return Choice(
            SplitGibbs(), f"x has {size:,} numbers: too many for the derivatives of particles"
        )
    if size <= _FEW_COORDINATES and target.exact is None:
        return Choice(
            TwistedSMC(num_particles, twist=Quadrature()),
            f"x has {size} number{'s' * (size > 1)}: few enough to average any likelihood over",
        )
    observed = target.num_observed()
    others = " and the other latents are moved along" if can_move(target) else ""
    if observed == 0:
        reason = "the observations have no moments and enter by their gradient"
    elif observed <= MOST_FOR_TWEEDIE:
        reason = f"few numbers are observed ({observed}), so their full covariance is affordable"
    else:
        reason = f"many numbers are observed ({observed}), so their covariance is taken isotropic"
    return Choice(smc, reason + others)
