"""What a network of this room, or one inside a wrapper, was made for; for checks alone.

The parts of a network are found in its pytree, so a wrapper of any kind need not pass anything on.
"""

from typing import Any

import jax

from .contexts import LabelEmbedding
from .layout import ImageLayout
from .mlp import MLP
from .rbf import RBF
from .sigmoid_mlp import SigmoidMLP


def label_count(network: Any) -> int | None:
    """How many classes its labels are of; None if its contexts are no labels."""
    found = _parts(network, (LabelEmbedding,))
    return min(part.num_classes for part in found) if found else None


def input_states(network: Any) -> set[int | None]:
    """Into one-hot vectors of how many states its parts turn events; None for numbers.

    Empty for networks of other makers, of which nothing is known.
    """
    parts = _parts(network, (MLP, ImageLayout, RBF, SigmoidMLP))
    return {getattr(part, "num_categories", None) for part in parts}


def _parts(network: Any, kinds: tuple[type, ...]) -> list[Any]:
    leaves = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
