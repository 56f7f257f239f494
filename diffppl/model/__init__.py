"""The diffusion model: a process, a network and a prediction.

*What lives here*: `DiffusionModel` and its checks; its kernels and units (`base`), its chains as
NumPyro programs (`programs`), its NumPyro distribution (`distribution`) with the ancestral draws
and the density of the probability flow that this requires; the scaling between the units of the
data and those of the chain (`Scaling`); and functions that return a modified model: `guided`,
`clipped`, `respaced`.

*The contract*: code outside this folder takes a `DiffusionModel`; nothing subclasses it. Files that
`model` imports are typed against its interface, `base.AbstractModel`.

*To add one*: a new module with a function that takes and returns a `DiffusionModel`, such as
`clipped`.

*What does not belong here*: algorithms that use a model (`samplers`, `likelihood`, `fitting`,
`conditioning`).
"""

from .clipped import clipped
from .guided import guided
from .model import DiffusionModel
from .respaced import respaced
from .scaling import Scaling

__all__ = ["DiffusionModel", "Scaling", "clipped", "guided", "respaced"]
