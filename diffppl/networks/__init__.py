"""Networks: callables that map x_t, t and a context to a raw output.

*What lives here*: a dense network (`MLP`), a network for signals, images and volumes (`UNet`),
wrappers around any network (`OptionalContext`, `MixedPrecision`, `Rematerialised`), the networks of
the 2015 paper in `sohl_dickstein/` (`RBF`, `SigmoidMLP`, `MultiScaleConv`), and their building
blocks in `layers/`.

*The contract*: any `eqx.Module` with `__call__(x_t, t, context) -> raw output` for one event:
`x_t` of the event's shape, `t` an integer in 1..T, `context` an array or None. Batches are formed
outside by `vmap`, with `t` unbatched, so that time features are computed once per batch. Images are
channels last inside a network, and convolutions use `layers.convolve`, which is fast inside
compiled loops on CPUs.

*To add one*: a new file with a final `eqx.Module`, and a row in `tests/registry.py`. With a last
layer initialised at zero and `predictions.Velocity()`, the initial reverse chain resembles the
forward chain.

*What does not belong here*: the meaning of the raw output (`predictions`) and the noise levels: a
network does not depend on a schedule. Analytic denoisers, which do, are in `denoisers`.
"""

from ..denoisers import Enumerated as EnumeratedDenoiser
from ..denoisers import Gaussian as GaussianDenoiser
from ..denoisers import GaussianMixture as GaussianMixtureDenoiser
from .classifier_free import OptionalContext
from .layers import padding
from .mlp import MLP
from .sohl_dickstein import RBF, MultiScaleConv, SigmoidMLP
from .unet import UNet
from .wrappers import MixedPrecision, Rematerialised

__all__ = [
    "MLP",
    "RBF",
    "EnumeratedDenoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "MixedPrecision",
    "MultiScaleConv",
    "OptionalContext",
    "Rematerialised",
    "SigmoidMLP",
    "UNet",
    "padding",
]
