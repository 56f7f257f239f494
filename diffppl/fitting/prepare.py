"""From the model that a user defined to the one that is trained: its units, and what stays fixed.

A context is for the network alone, so its units are the network's: vectors are standardised column
by column, as data are, and contexts of several axes as a whole. Left alone are the labels of a
network that embeds them, and columns of small whole numbers (-1 to 10), which one-hot vectors,
flags and labels are made of.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..model import DiffusionModel
from ..model.scaling import Scaling
from ..predictions.variance import replace_fitted
from ..processes import GaussianDiffusion
from .reverse_variance import with_start
from .training import default_trainable, trained_leaves

MIN_LABEL, MAX_LABEL = -1, 10


def prepared(
    model: DiffusionModel, scaling: Scaling | None, data: np.ndarray, context: np.ndarray | None
) -> DiffusionModel:
    """The model with its scalings, and the beginning of its reverse variance.

    Args:
        model: the user's.
        scaling: the one asked for; else the model's own, or that of the data.
        data, context: those that stand for all.
    """
    if isinstance(model.process, GaussianDiffusion):
        if scaling is None:
            scaling = Scaling.from_data(data) if model.scaling is None else model.scaling
        model = _with(model, "scaling", scaling)
    if context is not None and model.context_scaling is None:
        model = _with(model, "context_scaling", context_scaling(model, context))
    return with_start(model)


def context_scaling(model: DiffusionModel, context: np.ndarray) -> Scaling | None:
    """What standardises contexts of shape `(n, *context_shape)`; None if all are left alone."""
    if model.num_labels is not None:
        return None
    small = (context == np.round(context)) & (context >= MIN_LABEL) & (context <= MAX_LABEL)
    alone = small.all(axis=0) if context.ndim == 2 else small.all()
    found = Scaling.from_data(context)
    if np.all(alone):
        return None
    return Scaling(jnp.where(alone, 0.0, found.loc), jnp.where(alone, 1.0, found.scale))


def mask_of(model: DiffusionModel, trainable: PyTree) -> PyTree[bool]:
    """Whether each leaf is trained, of this model or of what `prepared` makes of it.

    The scalings and the fitted variance never are: data are scaled before the training, and the
    variance is estimated beside it.
    """
    mask = trained_leaves(model, default_trainable(model) if trainable is None else trainable)
    for name in ("scaling", "context_scaling"):
        mask = _with(mask, name, False)  # noqa: FBT003 (a mask)
    mask = replace_fitted(mask, lambda _: False)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"model has nothing to train: its network, {type(model.network).__name__}, is a known "
            "answer or has no arrays of floating-point numbers, and its schedule is fixed."
            if trainable is None
            else "trainable names no array of floating-point numbers in the network, and no levels "
            "of a learned schedule."
        )
    return mask


def _with(tree: PyTree, name: str, value: Any) -> PyTree:
    return eqx.tree_at(lambda t: getattr(t, name), tree, value, is_leaf=lambda node: node is None)
