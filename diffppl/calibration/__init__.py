"""Simulation-based calibration of a program and a method.

*What lives here*: drawing a program from its prior (`simulation`), ranking the truth among the
draws of a method (`calibrate`), judging the ranks (`uniformity`), and what a user sees (`result`).

*The contract*: a method is judged against the prior that it conditions
(`AbstractMethod.prior_sampler`), in one compiled call.

*To add one*: a quantity is a function that the user hands to `calibrate`; a test of uniformity is a
function of ranks in `uniformity`.

*What does not belong here*: methods, and pictures.
"""

from .calibrate import calibrate
from .result import Calibration

__all__ = [
    "Calibration",
    "calibrate",
]
