"""Room 5: posterior inference in any NumPyro program that contains a diffusion prior.

*What lives here*: a program bound to its data (`bound`), the density that it defines (`target`),
approximations to p(y | x_t) (`twists`), the reverse chains that are conditioned (`chains`) and
their guided kernels (`kernels`), methods that draw from the posterior (`TwistedSMC`, `Guidance`,
`Replacement`, `SplitGibbs`), the runner that a user meets (`Posterior`), and what NumPyro's own
inference takes: a kernel (`ParticleGibbs`) and reparameterisations (`FlowReparam`, `ChainReparam`).

*The contract*: a method is an `AbstractMethod`: it states its exactness and draws one chain by pure
functions. A twist is an `AbstractTwist`: it evaluates.

*To add one*: a new file with a final subclass, and a row in `tests/registry.py`, which holds it
against posteriors that are known.

*What does not belong here*: anything that asks which family a process has.
"""

from .chains import AbstractChain as AbstractChain
from .chains import CovarianceMatched as CovarianceMatched
from .chains import ModelChain as ModelChain
from .evidence import LogEvidence as LogEvidence
from .guidance import Guidance as Guidance
from .method import AbstractMethod as AbstractMethod
from .method import Draws as Draws
from .method import Exactness as Exactness
from .particle_gibbs import ParticleGibbs as ParticleGibbs
from .posterior import Posterior as Posterior
from .reparam import ChainReparam as ChainReparam
from .reparam import FlowReparam as FlowReparam
from .replacement import Replacement as Replacement
from .resampling import AbstractResampling as AbstractResampling
from .resampling import Multinomial as Multinomial
from .resampling import Stratified as Stratified
from .resampling import Systematic as Systematic
from .smc import TwistedSMC as TwistedSMC
from .split_gibbs import SplitGibbs as SplitGibbs
