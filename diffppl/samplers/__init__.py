"""Room 3: samplers, the ways from noise to data.

*What lives here*: ancestral sampling of the chain, the shortcuts of it that suit real data, and
`sample`, which runs any of them.

*The contract*: `AbstractSampler`, or `AbstractChainSampler` for one that visits every level with a
pure `init`, `step` and `last`. Steps are always t -> t - 1; a sampler that takes fewer reads the
model at fewer levels (`DiffusionModel.respace`).

*To add one*: a new file with a final subclass, and a row in `tests/registry.py`, which holds its
draws against an exact distribution.

*What does not belong here*: conditioning, and anything that asks which family a process has.
"""

from .ancestral import Ancestral, ancestral
from .base import AbstractChainSampler, AbstractSampler, SamplerState
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
