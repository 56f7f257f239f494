"""Data for fitting.

*What lives here*: sources of minibatches; eight-bit images as real numbers; data that are made
(dead leaves, swiss rolls, heartbeats) and data that are loaded, when asked for.

*The contract*: an `AbstractSource` draws `(x_0, context)` in the user's units, on the device, from
a key alone. `fit` takes one in place of an array.

*To add one*: a final subclass of `AbstractSource`, with a row in `tests/registry.py`.

*What does not belong here*: models, and what is measured of them; formats that NumPy reads.
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
