"""Predictions: what the raw output of a network means, and the variance of the reverse kernel.

*What lives here*: `AbstractPrediction` and its implementations (`Velocity`, `Noise`, `Data`,
`KernelMoments` ...) in `prediction`, and `AbstractVariance` and its own in `variance`.

*To add one*: a final subclass in `prediction`, and a row in `tests/registry.py`.

*What does not belong here*: networks, and the kernels themselves (`processes`).
"""

from .prediction import (
    AbstractMeanHead,
    AbstractPrediction,
    CodeHead,
    ConsistentHead,
    Data,
    KernelMoments,
    Noise,
    PrintedHead,
    Velocity,
)
from .variance import (
    AbstractVariance,
    FittedVariance,
    LearnedVariance,
    LowerVariance,
    UpperVariance,
)

__all__ = [
    "AbstractMeanHead",
    "AbstractPrediction",
    "AbstractVariance",
    "CodeHead",
    "ConsistentHead",
    "Data",
    "FittedVariance",
    "KernelMoments",
    "LearnedVariance",
    "LowerVariance",
    "Noise",
    "PrintedHead",
    "UpperVariance",
    "Velocity",
]
