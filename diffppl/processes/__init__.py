"""Room 1: forward processes q, one file per kind of data.

*What lives here*: the three kernels of q (`transition`, `marginal`, `posterior`), the stationary
`base`, the reverse kernel that an estimate of x_0 implies, and the KL between kernels; all in
NumPyro distributions.

*The contract*: `AbstractProcess`. Methods are elementwise in `x` and take one integer time.

*To add one*: a new file with a final subclass of `AbstractProcess`, and a row in
`tests/registry.py`, which holds the kernels against each other.

*What does not belong here*: networks, and anything that loops over time. Nothing outside this
room asks which family a process has.
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
