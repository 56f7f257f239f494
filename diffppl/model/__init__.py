"""The diffusion model: a process, a network and a prediction.

*What lives here*: `DiffusionModel` and its checks, its chains as NumPyro programs (`programs`), the
scaling between the units of the data and those of the chain (`Scaling`), and functions that return
a changed model: `guided`, `clipped`, `respaced`.

*The contract*: everything outside this room takes a `DiffusionModel`; nothing subclasses it.

*What does not belong here*: what is done with a model (`samplers`, `likelihood`, `fitting`,
`conditioning`).
"""

from .model import DiffusionModel
from .scaling import Scaling

__all__ = ["DiffusionModel", "Scaling"]
