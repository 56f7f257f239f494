"""Data for fitting.

*What lives here*: sources of minibatches; eight-bit images as real numbers; data that are made
(dead leaves, swiss rolls, heartbeats) and data that are loaded, when asked for.

*The contract*: an `AbstractSource` draws `(x_0, context)` in the user's units, on the device, from
a key alone. `fit` takes one in place of an array.

*To add one*: a final subclass of `AbstractSource`, with a row in `tests/registry.py`.

*What does not belong here*: models, and what is measured of them; formats that NumPy reads.
"""

from .augment import Crops as Crops
from .augment import Flipped as Flipped
from .dead_leaves import DeadLeaves as DeadLeaves
from .dequantise import Dequantised as Dequantised
from .dequantise import dequantise as dequantise
from .load import Labelled as Labelled
from .load import cifar10 as cifar10
from .load import mnist as mnist
from .source import AbstractSource as AbstractSource
from .source import InMemory as InMemory
from .toys import SwissRoll as SwissRoll
from .toys import heartbeats as heartbeats
