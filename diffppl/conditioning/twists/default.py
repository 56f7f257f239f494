"""The default twist of a method."""

from ..target import Target
from .base import AbstractAdaptiveTwist, AbstractTwist, is_analytic
from .expected import ExpectedLikelihood
from .mixed import Mixed
from .moments import MomentMatching
from .normal import MAX_DENSE
from .pooled import PooledMomentMatching

MAX_POOLED = 1_024
"""Number of observations up to which their covariance is pooled; its eigendecomposition at every
level takes a third of a second for 1,024 on one core."""


def default_twist(target: Target, *, adaptive: bool = False) -> AbstractTwist:
    """Return the twist for the program's kinds of data.

    `MomentMatching()` for real data, `ExpectedLikelihood()` for discrete, `Mixed()` for both. If
    the method can adapt twists, `PooledMomentMatching()` for 33 to 1,024 observed numbers
    and analytic denoisers. For fewer numbers the whole covariance of each particle is affordable.
    The Jacobian of a learned network differs between the references in too many directions: for
    64 pixels of a U-Net it left 3 to 104 of 500 particles, and `Isotropic()` 58 to 157.
    """
    if not target.sites(discrete=True):
        is_pooled = adaptive and MAX_DENSE < target.num_observed() <= MAX_POOLED
        exact = all(is_analytic(model.network) for model in target.models.values())
        return PooledMomentMatching() if is_pooled and exact else MomentMatching()
    return ExpectedLikelihood() if not target.sites(discrete=False) else Mixed()


def resolved_twist(
    twist: AbstractTwist | None, target: Target, *, adaptive: bool = False
) -> AbstractTwist:
    """Resolve a twist, or the default one if it is None.

    Args:
        twist: the argument of a method.
        target: the target.
        adaptive: whether the method adapts twists to its particles.
    """
    if isinstance(twist, AbstractAdaptiveTwist) and not adaptive:
        raise ValueError(
            f"twist={twist!r} is adapted to the particles of TwistedSMC, which this method does "
            "not have; use twist=MomentMatching()."
        )
    return (twist or default_twist(target, adaptive=adaptive)).resolve(target)
