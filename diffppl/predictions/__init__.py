"""Predictions: the meaning of a network's raw output, and the variance of the reverse kernel.

*What lives here*: `AbstractPrediction` and its implementations (`Velocity`, `Noise`, `Data`,
`KernelMoments`) in `prediction`, `AbstractVariance` and its implementations in `variance`.

*The contract*: `AbstractPrediction` maps a raw output to an estimate of x_0, and states the raw
output's shape. `AbstractVariance` returns Var[x_0 | x_t]. Both are for one event.

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
