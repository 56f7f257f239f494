"""The networks of Sohl-Dickstein et al. 2015, appendix D."""

from .multi_scale import MultiScaleConv
from .per_step import RBF, SigmoidMLP

__all__ = ["RBF", "MultiScaleConv", "SigmoidMLP"]
