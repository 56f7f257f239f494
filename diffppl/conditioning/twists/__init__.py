"""Approximations to p(y | x_t) shared by the methods; see `AbstractTwist`.

`PointEstimate`, `MomentMatching`, `PooledMomentMatching` and `Quadrature` apply to real data,
`ExpectedLikelihood` and `Enumeration` to bits and categories, `Mixed` to programs with both, and
`Perturbation`, the paper's rule, to either. To add one: a new file with a final subclass of
`AbstractTwist`, and a row in `tests/registry.py`. What does not belong here: loops over time,
particles and sampling.
"""

from .base import AbstractAdaptiveTwist, AbstractTwist, Twisted
from .covariance import AbstractCovariance, Isotropic, Tweedie
from .default import default_twist
from .enumeration import Enumeration
from .expected import ExpectedLikelihood
from .mixed import Mixed
from .moments import MomentMatching
from .perturbation import AbstractPower, ConstantPower, LinearPower, Perturbation
from .point import PointEstimate
from .pooled import PooledMomentMatching
from .quadrature import Quadrature

__all__ = [
    "AbstractAdaptiveTwist",
    "AbstractCovariance",
    "AbstractPower",
    "AbstractTwist",
    "ConstantPower",
    "Enumeration",
    "ExpectedLikelihood",
    "Isotropic",
    "LinearPower",
    "Mixed",
    "MomentMatching",
    "Perturbation",
    "PointEstimate",
    "PooledMomentMatching",
    "Quadrature",
    "Tweedie",
    "Twisted",
    "default_twist",
]
