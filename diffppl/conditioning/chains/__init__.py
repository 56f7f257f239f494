"""Reverse chains whose posterior a weighted method draws, and the guided kernels of their steps.

An exact or consistent method targets the posterior of a *chain*: the model's own, or a more
accurate one from the same denoiser. The weights are exact for either. The chains differ in how
closely the distribution of their x_0 matches the one that the network was fitted to.
"""

from .base import AbstractChain, Particle
from .matched import CovarianceMatched
from .model import ModelChain

__all__ = ["AbstractChain", "CovarianceMatched", "ModelChain", "Particle"]
