"""Serialisation of models and training states as JSON descriptions and arrays.

*What lives here*: `codec`, which converts objects to descriptions and arrays and back without
running code, and `save` and `load`, which write and read files.

*The contract*: a description consists of JSON values, and rebuilding it runs no code from a file.

*To add one*: a tag in `codec`, with a branch of `Describer.describe` and of `Rebuilder.rebuild`.

*What does not belong here*: checkpoints of a fit (`fitting.checkpoints`), and ArviZ
(`diffppl.arviz`).
"""

from .codec import LoadError
from .serialisation import load, save

__all__ = ["LoadError", "load", "save"]
