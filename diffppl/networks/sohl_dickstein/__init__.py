"""The networks of Sohl-Dickstein et al. 2015, appendix D."""

from .multi_scale import MultiScaleConv
from .rbf import RBF
from .sigmoid_mlp import SigmoidMLP

__all__ = ["RBF", "MultiScaleConv", "SigmoidMLP"]
