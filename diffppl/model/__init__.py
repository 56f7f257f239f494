"""The diffusion model: a process, a network and a prediction.

*What lives here*: `DiffusionModel` and its checks, its chains as NumPyro programs (`programs`), the
scaling between the units of the data and those of the chain (`Scaling`), and functions that return
a modified model: `guided`, `clipped`, `respaced`.

*The contract*: code outside this folder takes a `DiffusionModel`; nothing subclasses it.

*To add one*: a new module with a function that takes and returns a `DiffusionModel`, such as
`clipped`, and a method of the model that calls it.

*What does not belong here*: algorithms that use a model (`samplers`, `likelihood`, `fitting`,
`conditioning`).
"""

from .model import DiffusionModel
from .scaling import Scaling

__all__ = ["DiffusionModel", "Scaling"]
