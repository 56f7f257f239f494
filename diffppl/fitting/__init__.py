"""Fitting a model to data.

*What lives here*: `fit`, the losses it minimises, the loop that runs inside one compiled call,
what it leaves behind, and the checkpoints that survive it.

*The contract*: `fit(key, model, data, ...) -> FitResult`. A loss is an `AbstractLoss`: an unbiased,
differentiable estimate from a minibatch in model units. An iteration draws all it needs from
`fold_in(key, i)`, so that a run does not depend on where it was cut.

*To add one*: a loss is a final subclass of `AbstractLoss` in `losses`, with a row in
`tests/registry.py`.

*What does not belong here*: the bound itself (objectives), and optimisers, which are optax's.
"""

from . import losses
from .checkpoints import Checkpoints
from .fit import default_optimizer, fit
from .result import FitResult, NonFiniteLossError

__all__ = [
    "Checkpoints",
    "FitResult",
    "NonFiniteLossError",
    "default_optimizer",
    "fit",
    "losses",
]
