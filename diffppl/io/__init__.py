"""Files: models and training states as JSON descriptions and arrays.

*What lives here*: `codec`, which turns objects into descriptions and arrays and back without
running code, and `save` and `load`, which write and read them.

*What does not belong here*: when to write (`fitting.checkpoints`), and ArviZ (`diffppl.arviz`).
"""

from .codec import LoadError
from .serialisation import load, save

__all__ = ["LoadError", "load", "save"]
