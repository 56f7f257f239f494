"""Settings of the networks of this package, for argument checks.

The settings are read from the parts of a network's pytree, so that wrappers need not forward them.
"""

from typing import Any

import jax
from jaxtyping import PyTree

from .layers.contexts import LabelEmbedding
from .layers.layout import ImageLayout
from .mlp import MLP
from .sohl_dickstein.rbf import RBF
from .sohl_dickstein.sigmoid_mlp import SigmoidMLP


def num_classes_of(network: PyTree) -> int | None:
    """Return `num_classes` of a network, or None if its context is not a label."""
    embeddings = _parts(network, (LabelEmbedding,))
    # A label must be valid for every embedding of the network.
    return min(part.num_classes for part in embeddings) if embeddings else None


def num_categories_of(network: PyTree) -> set[int | None]:
    """Return `num_categories` of the parts of a network, None for a part with numeric input.

    The set is empty for networks that are not of this package.
    """
    parts = _parts(network, (MLP, ImageLayout, RBF, SigmoidMLP))
    return {getattr(part, "num_categories", None) for part in parts}


def _parts(network: PyTree, kinds: tuple[type, ...]) -> list[Any]:
    """Return the modules of the given classes in a pytree."""
    leaves = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
