"""Forward processes q, one module for each kind of data.

*What lives here*: the three kernels of q (`transition`, `marginal`, `posterior`), the stationary
distribution `base`, the reverse kernel implied by an estimate of x_0, and the KL divergence between
kernels, all as NumPyro distributions.

*The contract*: `AbstractProcess`. Methods act elementwise on `x` and take one integer time.

*To add one*: a new module with a final subclass of `AbstractProcess`, and a row in
`tests/registry.py`, whose tests check the kernels against one another.

*What does not belong here*: networks, and loops over time. Code outside this folder does not
depend on the family of a process.
"""

from .base import AbstractProcess
from .bernoulli import BernoulliDiffusion, BernoulliEstimate
from .categorical import Absorbing, CategoricalDiffusion, CategoricalEstimate, Uniform
from .gaussian import GaussianDiffusion, GaussianEstimate

__all__ = [
    "Absorbing",
    "AbstractProcess",
    "BernoulliDiffusion",
    "BernoulliEstimate",
    "CategoricalDiffusion",
    "CategoricalEstimate",
    "GaussianDiffusion",
    "GaussianEstimate",
    "Uniform",
]
