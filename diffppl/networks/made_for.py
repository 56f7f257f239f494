"""The settings with which the networks of this room were made, for checks.

The parts of a network are found in its pytree, so that wrappers need not pass them on.
"""

from typing import Any

import jax

from .layers.contexts import LabelEmbedding
from .layers.layout import ImageLayout
from .mlp import MLP
from .sohl_dickstein.rbf import RBF
from .sohl_dickstein.sigmoid_mlp import SigmoidMLP


def label_count(network: Any) -> int | None:
    """`num_classes` of its labels; None if its contexts are no labels."""
    found = _parts(network, (LabelEmbedding,))
    return min(part.num_classes for part in found) if found else None


def input_states(network: Any) -> set[int | None]:
    """`num_categories` of its parts; None for one that takes events as numbers.

    Empty for networks that are not of this package.
    """
    parts = _parts(network, (MLP, ImageLayout, RBF, SigmoidMLP))
    return {getattr(part, "num_categories", None) for part in parts}


def _parts(network: Any, kinds: tuple[type, ...]) -> list[Any]:
    leaves = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
