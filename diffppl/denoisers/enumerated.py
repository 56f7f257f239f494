"""The analytic denoiser of a discrete prior with listed states.

For a prior P(x_0 = s_i) = p_i over S states, and a chain with independent coordinates,

    P(x_0 = s_i | x_t) proportional to p_i prod_j q(x_tj | x_0j = s_ij),

and the probability that coordinate j has value c is the sum over the states with s_ij = c. The
logarithm of the product is linear in the table log q(x_tj | x_0j = c), so that the computation is
two matrix multiplications by one-hot states, over any batch of events.
"""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks.arguments import Time, check_instance, described
from ..checks.arrays import Numbers, as_finite
from ..processes import AbstractProcess
from ..processes.support import check_support
from .base import AbstractDenoiser
from .mixture import check_probabilities

MIN_LOG_PROB = -1e6  # nats, in place of log 0: finite, so that its product with 0 is 0
MAX_LOG_ODDS = 30.0  # nats, the largest log-odds: finite where x_t determines a coordinate


@final
class Enumerated(AbstractDenoiser):
    """The exact denoiser of bits or categories with a list of possible states.

    Its estimate has the exact marginals P(x_0j | x_t), which the reverse kernels of these processes
    require. Log-odds are clipped at 30 nats.

    Args:
        process: the process, with its schedule, whose marginals are the q(x_t | x_0).
        states: shape `(num_states, *event_shape)`, whole numbers in the support of the process. A
            state may be listed twice.
        probabilities: shape `(num_states,)`, summing to 1.

    Raises:
        TypeError: `process` is not a process of bits or categories.
        ValueError: states out of range, probabilities of the wrong shape or sum.

    Example:
        >>> import itertools
        >>> process = dp.BernoulliDiffusion(dp.schedules.reciprocal(num_steps=50), rate=0.2)
        >>> states = jnp.array(list(itertools.product([0, 1], repeat=3)))
        >>> probabilities = jax.nn.softmax(states.sum(axis=1) * 0.5)
        >>> network = dp.denoisers.Enumerated(process, states, probabilities)
        >>> model = dp.DiffusionModel(process, network, event_shape=(3,))
    """

    process: AbstractProcess
    one_hot: Float[Array, "states d values"]
    log_probabilities: Float[Array, " states"]

    def __init__(self, process: AbstractProcess, states: Numbers, probabilities: Numbers) -> None:
        check_instance("process", process, AbstractProcess)
        if not process.support.is_discrete:
            raise TypeError(
                f"process={described(process)} must be a process of bits or categories. For real "
                "data use denoisers.GaussianMixture with covariances=0."
            )
        listed = np.asarray(as_finite("states", states))
        number = 2 if process.num_categories is None else process.num_categories
        if listed.ndim == 0 or listed.size == 0:
            raise ValueError(
                f"states has shape {listed.shape}; it needs shape (num_states, *event_shape)."
            )
        check_support("states", listed, process)
        probs = check_probabilities("probabilities", probabilities, listed.shape[0])
        # States of probability 0 are dropped: their log-probabilities are -inf.
        listed = listed.reshape(listed.shape[0], -1)[probs > 0].astype(int)
        self.process = process
        self.one_hot = jnp.asarray(np.eye(number)[listed], dtype=float)
        self.log_probabilities = jnp.asarray(np.log(probs[probs > 0]), dtype=float)

    def __call__(self, x_t: Array, t: Time, context: Array | None) -> Float[Array, "..."]:
        """Return log-odds of each bit, or log-probabilities of each category on a trailing axis."""
        del context
        states, size, values = self.one_hot.shape

        def log_likelihood(value: Array) -> Array:
            x_0 = jnp.full(x_t.shape, value, self.process.dtype)
            return jnp.reshape(self.process.marginal(x_0, t).log_prob(x_t), size)

        # log q(x_tj | x_0j = c), shape (size, values).
        table = jax.vmap(log_likelihood)(jnp.arange(values)).T
        table = jnp.maximum(table, MIN_LOG_PROB)
        flat = self.one_hot.reshape(states, size * values)
        weights = jax.nn.softmax(self.log_probabilities + flat @ table.reshape(-1))
        marginals = (weights @ flat).reshape(*x_t.shape, values)
        logs = jnp.log(jnp.maximum(marginals, jnp.finfo(marginals.dtype).tiny))
        if self.process.num_categories is None:
            return jnp.clip(logs[..., 1] - logs[..., 0], -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return jnp.maximum(logs, logs.max(axis=-1, keepdims=True) - MAX_LOG_ODDS)
