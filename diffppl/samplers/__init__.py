"""Samplers: unconditional sampling from a model.

*What lives here*: ancestral sampling of the chain, faster samplers for real data, and `sample`,
which runs any of them.

*The contract*: `AbstractSampler`, or `AbstractChainSampler` for one that visits every level with a
pure `step` and `final_step`. Steps are always t -> t - 1; `sample(num_steps=)` uses the model at
fewer levels (`respaced`).

*To add one*: a new file with a final subclass, and a row in `tests/registry.py`, whose tests
compare its draws with an exact distribution.

*What does not belong here*: conditioning, and code that depends on the family of a process.
"""

from ..model.ancestral import SamplerState, ancestral
from .ancestral_sampling import Ancestral
from .base import AbstractChainSampler, AbstractSampler
from .ddim import DDIM
from .dpm_solver import DPMSolver
from .matched import CovarianceMatched
from .probability_flow import ProbabilityFlow
from .sample import sample, sample_path

__all__ = [
    "DDIM",
    "AbstractChainSampler",
    "AbstractSampler",
    "Ancestral",
    "CovarianceMatched",
    "DPMSolver",
    "ProbabilityFlow",
    "SamplerState",
    "ancestral",
    "sample",
    "sample_path",
]
