"""The default twist of a method."""

from ..target import Target
from .base import AbstractTwist
from .expected import ExpectedLikelihood
from .mixed import Mixed
from .moments import MomentMatching


def default_twist(target: Target) -> AbstractTwist:
    """Return the twist for the program's kinds of data.

    `MomentMatching()` for real data, `ExpectedLikelihood()` for discrete, `Mixed()` for both.
    """
    if not target.sites(discrete=True):
        return MomentMatching()
    return ExpectedLikelihood() if not target.sites(discrete=False) else Mixed()


def resolved_twist(twist: AbstractTwist | None, target: Target) -> AbstractTwist:
    """Resolve a twist, or the default one if it is None."""
    return (default_twist(target) if twist is None else twist).resolve(target)
