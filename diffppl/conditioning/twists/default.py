"""The twist that a method takes if the user names none."""

from ..target import Target
from .base import AbstractTwist
from .expected import ExpectedLikelihood
from .moments import MomentMatching


def default_twist(target: Target) -> AbstractTwist:
    """`ExpectedLikelihood()` for bits and categories, `MomentMatching()` for real data."""
    discrete = any(model.process.support.is_discrete for model in target.models().values())
    return ExpectedLikelihood() if discrete else MomentMatching()
