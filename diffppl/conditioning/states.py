"""Log-probabilities of the states of discrete data, for all discrete processes."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from numpyro.distributions import Distribution

from ..processes import AbstractProcess
from ..processes.bernoulli import BernoulliEstimate
from ..processes.categorical import CategoricalEstimate

DiscreteEstimate = BernoulliEstimate | CategoricalEstimate


def most_probable(process: AbstractProcess, estimate: PyTree) -> Array:
    """Return the mean of an estimate of real data, or the most probable state of discrete data."""
    if not process.support.is_discrete:
        return process.mean(estimate)
    return jnp.argmax(state_logits(process, estimate), axis=-1).astype(process.dtype)


def state_logits(
    process: AbstractProcess, estimate: DiscreteEstimate
) -> Float[Array, "... states"]:
    """Return unnormalised log-probabilities of the states of x_0 under an estimate.

    Minus infinity for states that a coordinate does not have.
    """
    if process.num_categories is None:  # bits, whose estimate has the log-odds of state 1
        return jnp.stack([jnp.zeros_like(estimate.logits), estimate.logits], axis=-1)
    return process.estimate_from_logits(estimate.logits).logits


def num_states(process: AbstractProcess, shape: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    """Return the number of states of x_0 at each coordinate of an array of events."""
    return np.broadcast_to(np.asarray(getattr(process, "counts", 2)), shape)


def with_state_logits(
    process: AbstractProcess, estimate: DiscreteEstimate, logits: Array
) -> DiscreteEstimate:
    """Return the estimate with the given log-probabilities of the states."""
    if process.num_categories is None:
        logits = logits[..., 1] - logits[..., 0]
    return eqx.tree_at(lambda estimate: estimate.logits, estimate, logits)


def kernel_logits(kernel: Distribution) -> Float[Array, "... states"]:
    """Return log-probabilities of all states under a kernel of discrete data."""
    states = kernel.enumerate_support(expand=True)
    return jnp.moveaxis(kernel.log_prob(states), 0, -1)
