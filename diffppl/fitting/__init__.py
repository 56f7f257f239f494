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

from . import losses as losses
from .checkpoints import Checkpoints as Checkpoints
from .fit import default_optimizer as default_optimizer
from .fit import fit as fit
from .result import FitResult as FitResult
from .result import NonFiniteLossError as NonFiniteLossError
