"""Fitting a model to data.

*What lives here*: `fit`, its losses, the compiled training loop, the result of a fit, and
checkpoints.

*The contract*: `fit(key, model, data, ...) -> FitResult`. A loss is an `AbstractLoss`: an unbiased,
differentiable estimate from a minibatch in model units. Iteration i draws its randomness from
`fold_in(key, i)`, so the result does not depend on where a run is interrupted.

*To add one*: a loss is a final subclass of `AbstractLoss` in `losses`, with a row in
`tests/registry.py`.

*What does not belong here*: the ELBO itself (`likelihood`), and optimisers, which come from optax.
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
