"""Posterior inference in NumPyro programs that contain a diffusion prior.

*What lives here*: a program bound to its data (`bound`), the density that it defines (`target`),
approximations to p(y | x_t) (`twists`), the reverse chains (`chains`) and their guided kernels
(`kernels`), methods that draw from the posterior (`TwistedSMC`, `Guidance`, `Replacement`,
`SplitGibbs`), the runner (`Posterior`), and components for NumPyro's own inference: an MCMC kernel
(`ParticleGibbs`) and reparameterisations (`FlowReparam`, `ChainReparam`).

*The contract*: a method is an `AbstractMethod`: it declares its exactness and draws one chain by
pure functions. A twist is an `AbstractTwist`: it evaluates log psi_t at one particle, without
random draws.

*To add one*: a new file with a final subclass, and a row in `tests/registry.py`, which compares it
with exact posteriors.

*What does not belong here*: code that depends on the family of a process.
"""

from .chains import AbstractChain, CovarianceMatched, ModelChain
from .evidence import LogEvidence
from .guidance import Guidance
from .method import AbstractMethod, Draws, Exactness
from .particle_gibbs import ParticleGibbs
from .posterior import Posterior
from .reparam import ChainReparam, FlowReparam
from .replacement import Replacement
from .smc import TwistedSMC
from .split_gibbs import SplitGibbs

__all__ = [
    "AbstractChain",
    "AbstractMethod",
    "ChainReparam",
    "CovarianceMatched",
    "Draws",
    "Exactness",
    "FlowReparam",
    "Guidance",
    "LogEvidence",
    "ModelChain",
    "ParticleGibbs",
    "Posterior",
    "Replacement",
    "SplitGibbs",
    "TwistedSMC",
]
