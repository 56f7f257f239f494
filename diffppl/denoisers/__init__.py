"""Analytic denoisers: priors for which E[x_0 | x_t] has a closed form.

*What lives here*: `Gaussian`, `GaussianMixture` and `Enumerated`. A model with an analytic denoiser
in place of a network needs no training, and whatever is computed from it (a likelihood, a
posterior, a diagnostic) can be compared with the truth.

*The contract*: `AbstractDenoiser`, a callable `(x_t, t, context) -> raw output` with the meaning of
`predictions.Data()`. A denoiser takes the schedule of its process.

*To add one*: a new file with a final subclass of `AbstractDenoiser`, and a row in
`tests/registry.py`.

*What does not belong here*: anything that is trained.
"""

from .base import AbstractDenoiser
from .enumerated import Enumerated
from .gaussian import Gaussian
from .mixture import GaussianMixture

__all__ = ["AbstractDenoiser", "Enumerated", "Gaussian", "GaussianMixture"]
