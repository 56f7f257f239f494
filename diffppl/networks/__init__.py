"""Room 2: networks, which look at x_t and say what x_0 was.

*What lives here*: dense networks (`MLP`, and the paper's `RBF` and `SigmoidMLP`), and known
answers (`GaussianDenoiser`, `GaussianMixtureDenoiser`, `EnumeratedDenoiser`), which need no
training.

*The contract*: any `eqx.Module` with `__call__(x_t, t, context) -> raw output` for one event:
`x_t` of the event's shape, `t` an integer in 1..T, `context` an array or None. Batches are made
outside, by `vmap` over `x_t` alone, so that what depends on `t` alone is computed once for all.

*To add one*: a new file with a final `eqx.Module`, and a row in `tests/registry.py`. A last layer
that starts at zero makes the reverse chain start like the forward one (with `Velocity`). A known
answer is a subclass of `AbstractDenoiser`.

*What does not belong here*: what the raw output means (predictions), and the noise levels: a
network knows no schedule. Known answers do, and take one.
"""

from .enumerated import EnumeratedDenoiser as EnumeratedDenoiser
from .known import AbstractDenoiser as AbstractDenoiser
from .known import GaussianDenoiser as GaussianDenoiser
from .mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
from .mlp import MLP as MLP
from .rbf import RBF as RBF
from .sigmoid_mlp import SigmoidMLP as SigmoidMLP
