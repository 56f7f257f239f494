"""Preparation of a model for training: its scalings, and which of its arrays are trained.

Contexts enter the network only: vectors are standardised column by column, as data are, and
contexts of several axes as a whole. Not scaled are the labels of a network that embeds them, and
columns of small whole numbers (-1 to 10), such as one-hot vectors, flags and labels.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..model import DiffusionModel
from ..model.scaling import Scaling
from ..predictions.variance import replace_fitted
from ..processes import GaussianDiffusion
from .reverse_variance import with_initial_variance
from .training import default_trainable, trained_leaves

MIN_LABEL, MAX_LABEL = -1, 10  # columns of whole numbers in this range are not scaled


def prepared(
    model: DiffusionModel, scaling: Scaling | None, data: np.ndarray, context: np.ndarray | None
) -> DiffusionModel:
    """Return the model with its scalings and the initial estimate of its reverse variance.

    Args:
        model: the model as defined by the user.
        scaling: the scaling of the data; if None, the model's own, or else that of the data.
        data, context: representative data and contexts, in the user's units.
    """
    if isinstance(model.process, GaussianDiffusion):
        if scaling is None:
            scaling = Scaling.from_data(data) if model.scaling is None else model.scaling
        model = _replace(model, "scaling", scaling)
    if context is not None and model.context_scaling is None:
        model = _replace(model, "context_scaling", context_scaling(model, context))
    return with_initial_variance(model)


def context_scaling(model: DiffusionModel, context: np.ndarray) -> Scaling | None:
    """Return the scaling of contexts of shape `(n, *context_shape)`; None if none is scaled."""
    if model.num_labels is not None:
        return None
    is_small = (context == np.round(context)) & (context >= MIN_LABEL) & (context <= MAX_LABEL)
    unscaled = is_small.all(axis=0) if context.ndim == 2 else is_small.all()
    if np.all(unscaled):
        return None
    scaling = Scaling.from_data(context)
    return Scaling(jnp.where(unscaled, 0.0, scaling.loc), jnp.where(unscaled, 1.0, scaling.scale))


def trainable_mask(model: DiffusionModel, trainable: PyTree) -> PyTree[bool]:
    """Return whether each leaf is trained, for this model before and after `prepared`.

    The scalings and the fitted variance are not trained: data are scaled before training, and the
    variance is estimated separately.
    """
    mask = trained_leaves(model, default_trainable(model) if trainable is None else trainable)
    for name in ("scaling", "context_scaling"):
        mask = _replace(mask, name, False)
    mask = replace_fitted(mask, lambda _: False)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"model has nothing to train: its network, {type(model.network).__name__}, is an "
            "analytic denoiser or has no floating-point arrays, and its schedule is fixed."
            if trainable is None
            else "trainable names no array of floating-point numbers in the network, and no levels "
            "of a learned schedule."
        )
    return mask


def _replace(tree: PyTree, name: str, value: PyTree) -> PyTree:
    # Fields that are None are leaves here, so that they can be replaced.
    return eqx.tree_at(lambda t: getattr(t, name), tree, value, is_leaf=lambda node: node is None)
