"""Simulation-based calibration of a method on a program.

*What lives here*: simulation of a program from its prior (`simulation`), ranks of the simulated
values among the posterior draws of a method (`calibrate`, `ranks`), tests of their uniformity
(`uniformity`), and the result (`result`).

*The contract*: a method is tested against the prior that it conditions
(`AbstractMethod.prior_sampler`); a batch of simulations is one compiled call.

*To add one*: a test quantity is a function passed to `calibrate`; a test of uniformity is a
function of ranks in `uniformity`.

*What does not belong here*: methods (`conditioning`) and figures (`plots`).
"""

from .calibrate import calibrate
from .result import Calibration

__all__ = [
    "Calibration",
    "calibrate",
]
