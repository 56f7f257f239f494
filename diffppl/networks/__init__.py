"""Room 2: networks, which look at x_t and say what x_0 was.

*What lives here*: dense networks (`MLP`, and the paper's `RBF` and `SigmoidMLP`), networks for
images, signals and volumes (`UNet`, and the paper's `MultiScaleConv`), wrappers around any of them
(`MixedPrecision`, `Rematerialised`), and known answers (`GaussianDenoiser`,
`GaussianMixtureDenoiser`, `EnumeratedDenoiser`), which need no training.

*The contract*: any `eqx.Module` with `__call__(x_t, t, context) -> raw output` for one event:
`x_t` of the event's shape, `t` an integer in 1..T, `context` an array or None. Batches are made
outside, by `vmap` over `x_t` alone, so that what depends on `t` alone is computed once for all.
Inside a network images are channels last, and convolutions are `convolve`'s, which is fast inside
compiled loops.

*To add one*: a new file with a final `eqx.Module`, and a row in `tests/registry.py`. A last layer
that starts at zero makes the reverse chain start like the forward one (with `Velocity`). A known
answer is a subclass of `AbstractDenoiser`.

*What does not belong here*: what the raw output means (predictions), and the noise levels: a
network knows no schedule. Known answers do, and take one.
"""

from . import padding as padding
from .enumerated import EnumeratedDenoiser as EnumeratedDenoiser
from .known import AbstractDenoiser as AbstractDenoiser
from .known import GaussianDenoiser as GaussianDenoiser
from .mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
from .mlp import MLP as MLP
from .multi_scale import MultiScaleConv as MultiScaleConv
from .optional_context import OptionalContext as OptionalContext
from .rbf import RBF as RBF
from .sigmoid_mlp import SigmoidMLP as SigmoidMLP
from .unet import UNet as UNet
from .wrappers import MixedPrecision as MixedPrecision
from .wrappers import Rematerialised as Rematerialised
