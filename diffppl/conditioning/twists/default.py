"""The twist that a method takes if the user names none."""

from ..target import Target
from .base import AbstractTwist
from .expected import ExpectedLikelihood
from .mixed import Mixed
from .moments import MomentMatching


def default_twist(target: Target) -> AbstractTwist:
    """`MomentMatching()` for real data, `ExpectedLikelihood()` for discrete, `Mixed()` for both."""
    if not target.sites(discrete=True):
        return MomentMatching()
    return ExpectedLikelihood() if not target.sites(discrete=False) else Mixed()


def resolved_twist(twist: AbstractTwist | None, target: Target) -> AbstractTwist:
    """A twist, or the default one, with every setting filled in."""
    return (default_twist(target) if twist is None else twist).resolve(target)
