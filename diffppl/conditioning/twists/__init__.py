"""Approximations to p(y given x_t) that methods share; see `AbstractTwist`.

`PointEstimate`, `MomentMatching` and `Quadrature` are for real data, `ExpectedLikelihood` for bits
and categories, and `Perturbation`, the paper's rule, for both. To add one: a new file with a final
subclass of `AbstractTwist`, and a row in `tests/registry.py`. What does not belong here: loops over
time, and particles.
"""

from .base import AbstractTwist as AbstractTwist
from .base import Twisted as Twisted
from .default import default_twist as default_twist
from .expected import ExpectedLikelihood as ExpectedLikelihood
from .moments import Isotropic as Isotropic
from .moments import MomentMatching as MomentMatching
from .moments import Tweedie as Tweedie
from .perturbation import AbstractPower as AbstractPower
from .perturbation import ConstantPower as ConstantPower
from .perturbation import LinearPower as LinearPower
from .perturbation import Perturbation as Perturbation
from .point import PointEstimate as PointEstimate
from .quadrature import Quadrature as Quadrature
