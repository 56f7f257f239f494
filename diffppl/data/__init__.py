"""Data for fitting.

*What lives here*: sources of minibatches; dequantisation and augmentation of images; synthetic data
(dead leaves, swiss rolls, heartbeats); loaders of public data sets, which read or download on call.

*The contract*: an `AbstractSource` draws `(x_0, context)` in the user's units, on the device, as a
function of a key only. `fit` accepts one in place of an array.

*To add one*: a final subclass of `AbstractSource`, with a row in `tests/registry.py`.

*What does not belong here*: models and their evaluation; formats that NumPy reads.
"""

from .augment import Crops, Flipped
from .dead_leaves import DeadLeaves
from .dequantise import Dequantised, dequantise
from .load import Labelled, cifar10, mnist
from .source import AbstractSource, InMemory
from .toys import SwissRoll, heartbeats

__all__ = [
    "AbstractSource",
    "Crops",
    "DeadLeaves",
    "Dequantised",
    "Flipped",
    "InMemory",
    "Labelled",
    "SwissRoll",
    "cifar10",
    "dequantise",
    "heartbeats",
    "mnist",
]
