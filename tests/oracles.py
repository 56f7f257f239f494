"""Exact answers, in double precision and without the package's own formulae.

Gaussian: data N(m, C) with diagonal C, whose reverse kernels are known. Discrete: every state
written out, kernels as matrices. Conditioning: linear maps of (mixtures of) normal vectors.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax import Array
from numpy.typing import ArrayLike

# Gaussian chains -----------------------------------------------------------------------------


def gaussian_bound_at(
    x_0: ArrayLike, mean: ArrayLike, variance: ArrayLike, alpha_bar: ArrayLike
) -> np.ndarray:
    """K(x_0) per coordinate in nats: data N(mean, variance), their exact reverse kernels for
    t >= 2, and the fixed final step.

    E over q(x_t | x_0) of each KL is in closed form: E[x_0 | x_t] is linear in x_t.
    """
    x_0, m, c = (np.asarray(x, np.float64) for x in (x_0, mean, variance))
    abar = np.asarray(alpha_bar, np.float64)
    beta = 1 - abar[1:] / abar[:-1]  # beta[t - 1] is beta_t
    edge = -0.5 * (np.log(2 * np.pi * beta[0]) + 1 - beta[0] + beta[0] * x_0**2)
    total = edge
    for t in range(2, len(abar)):
        b = np.sqrt(abar[t - 1]) * beta[t - 1] / (1 - abar[t])
        v_q = beta[t - 1] * (1 - abar[t - 1]) / (1 - abar[t])
        gain = c * np.sqrt(abar[t]) / (abar[t] * c + 1 - abar[t])  # d E[x_0 | x_t] / d x_t
        left = 1 - gain * np.sqrt(abar[t])
        v_p = v_q + b**2 * left * c
        miss = (left * (x_0 - m)) ** 2 + gain**2 * (1 - abar[t])  # E (x_0 - E[x_0 | x_t])^2
        total = total - 0.5 * (np.log(v_p / v_q) + (v_q + b**2 * miss) / v_p - 1)
    return total - normal_kl(np.sqrt(abar[-1]) * x_0, 1 - abar[-1], 0.0, 1.0)


def gaussian_bound(variance: ArrayLike, alpha_bar: ArrayLike) -> np.ndarray:
    """E K per coordinate in nats, for data N(0, variance) and exact reverse kernels.

    -H(X_1) - KL(q(x_T), pi) when the variance is 1 on average; the fixed final step costs
    beta_1 (variance - 1) / 2 besides.
    """
    c, abar = np.asarray(variance, np.float64), np.asarray(alpha_bar, np.float64)
    entropy = 0.5 * np.log(2 * np.pi * np.e * (abar[1] * c + 1 - abar[1]))
    end = normal_kl(0.0, abar[-1] * c + 1 - abar[-1], 0.0, 1.0)
    return -entropy - end - 0.5 * (1 - abar[1]) * (c - 1)


def normal_kl(mean_q: Any, variance_q: Any, mean_p: Any, variance_p: Any) -> np.ndarray:
    """KL between normals, per coordinate, in nats."""
    ratio = np.asarray(variance_q, np.float64) / variance_p
    return 0.5 * (ratio - 1 - np.log(ratio) + (np.asarray(mean_q) - mean_p) ** 2 / variance_p)


# Discrete chains -------------------------------------------------------------------------------


def all_states(num_categories: int, num_coordinates: int) -> np.ndarray:
    """Every state of several coordinates, shape `(num_categories**num_coordinates, ...)`."""
    return np.array(list(itertools.product(range(num_categories), repeat=num_coordinates)))


def transition_matrix(beta: float, base: ArrayLike) -> np.ndarray:
    """P(next given now) of one coordinate, shape `(now, next)`: kept, or drawn anew."""
    base = np.asarray(base, np.float64)
    return (1 - beta) * np.eye(base.size) + beta * base[None, :]


def chain_matrices(beta: ArrayLike, base: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Transitions `A[t]` and marginals `M[t] = A[1] ... A[t]` for t = 0..T (identity at t = 0).

    Args:
        beta: shape `(T + 1,)`; `beta[0]` is not used.
        base: stationary probabilities of one coordinate.
    """
    steps = [np.eye(np.size(base))] + [transition_matrix(b, base) for b in np.asarray(beta)[1:]]
    return np.array(steps), np.array(list(itertools.accumulate(steps, np.matmul)))


def posterior_table(steps: np.ndarray, marginals: np.ndarray, t: int) -> np.ndarray:
    """q(x_{t-1} | x_t, x_0) by Bayes, shape `(x_t, x_0, x_{t-1})`; NaN where impossible."""
    joint = marginals[t - 1][None, :, :] * steps[t].T[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        return joint / joint.sum(-1, keepdims=True)


def kernel_table(kernel: Any, states: ArrayLike) -> Array:
    """Probabilities of every `state`, from a distribution whose batch shape begins with "now".

    Args:
        kernel: batch shape `(now, *coordinates)` and no event, or `(now,)` and one event.
        states: numbers, shape `(next,)`, given to all coordinates alike; or whole events.

    Returns:
        shape `(now, next, *coordinates)`, or `(now, next)`. Can be traced.
    """
    states = jnp.asarray(states)
    shape = kernel.batch_shape[1:] + kernel.event_shape
    values = states if states.ndim > 1 else states.reshape(-1, *(1 for _ in shape))
    return _table(kernel, jnp.broadcast_to(values, (states.shape[0], *shape)))


@eqx.filter_jit
def _table(kernel: Any, values: Array) -> Array:
    return jnp.exp(jax.vmap(kernel.log_prob, out_axes=1)(values))


def model_marginals(
    reverse_table: Callable[[int], np.ndarray], start: np.ndarray, num_steps: int
) -> list[np.ndarray]:
    """p(x_t) for t = 0..T of a reverse chain, by matrix products over all states.

    Args:
        reverse_table: t -> p(x_{t-1} | x_t), shape `(x_t, x_{t-1})`.
        start: p(x_T).
        num_steps: T.
    """
    marginals = [np.asarray(start, np.float64)]
    for t in range(num_steps, 0, -1):
        marginals.append(marginals[-1] @ reverse_table(t))
    return marginals[::-1]


def discrete_model_tables(model: Any, chain_states: np.ndarray, data_states: np.ndarray) -> Any:
    """p(x_{t-1} | x_t) of a discrete model over all states, as `model_marginals` takes it."""

    def table(t: int | Array, states: np.ndarray) -> Array:
        return kernel_table(model.reverse_kernel(jnp.asarray(chain_states), t), states)

    # Compiled: step by step, JAX takes a tenth of a second for each.
    times = jnp.arange(2, model.num_steps + 1)
    above = np.asarray(jax.jit(lambda: jax.lax.map(lambda t: table(t, chain_states), times))())
    edge = np.asarray(jax.jit(lambda: table(1, data_states))())
    return lambda t: edge if t == 1 else above[t - 2]


def discrete_model_log_prob(
    model: Any, chain_states: np.ndarray, data_states: np.ndarray
) -> np.ndarray:
    """Exact log p(x_0) of a discrete model at every data state, in nats."""
    base = model.process.base((1, *model.event_shape)).to_event(len(model.event_shape))
    start = np.asarray(kernel_table(base, chain_states))[0]
    tables = discrete_model_tables(model, chain_states, data_states)
    with np.errstate(divide="ignore"):  # states that cannot be
        return np.log(model_marginals(tables, start, model.num_steps)[0])


def discrete_bound(
    model: Any, base: np.ndarray, chain_states: np.ndarray, data_states: np.ndarray
) -> np.ndarray:
    """Exact K(x_0) of a discrete model at every data state, in nats, by sums over all states.

    Args:
        model: its kernels p(x_{t-1} | x_t) are tabulated.
        base: pi of each coordinate, shape `(states, coordinates)`.
        chain_states, data_states: all of them, shapes `(n, coordinates)`.
    """
    pairs = [chain_matrices(model.process.schedule.beta(), column) for column in base.T]

    def joint(tables: list[np.ndarray], now: np.ndarray, following: np.ndarray) -> np.ndarray:
        """A table over whole events, from one for each coordinate."""
        parts = [table[now[:, j, None], following[None, :, j]] for j, table in enumerate(tables)]
        return np.prod(parts, axis=0)

    num_steps, table = model.num_steps, discrete_model_tables(model, chain_states, data_states)
    reached = [
        joint([m[t] for _, m in pairs], data_states, chain_states) for t in range(num_steps + 1)
    ]
    # 0 log 0 = 0, though p may be 0 (or, where q cannot get, NaN) there.
    dot = lambda q, log_p: np.sum(np.where(q > 0, q * log_p, 0.0), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        end = np.prod([column[chain_states[:, j]] for j, column in enumerate(base.T)], axis=0)
        bound = dot(reached[1], np.log(table(1)).T)
        bound -= dot(reached[-1], np.log(reached[-1]) - np.log(end))
        for t in range(2, num_steps + 1):
            step = joint([a[t] for a, _ in pairs], chain_states, chain_states)
            both = reached[t - 1][:, None, :] * step.T[None]  # (x_0, x_t, x_{t-1})
            posterior = both / both.sum(axis=-1, keepdims=True)
            kl = dot(posterior, np.log(posterior) - np.log(table(t))[None])
            bound -= dot(reached[t], kl)
    return bound


# Conditioning ----------------------------------------------------------------------------------


def linear_gaussian_posterior(
    mean: ArrayLike, covariance: ArrayLike, y: ArrayLike, matrix: ArrayLike, noise: ArrayLike
) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior mean and covariance, and log p(y), of x ~ N(mean, covariance) with
    y ~ N(matrix x, noise)."""
    m, c, y, a, s = (np.asarray(x, np.float64) for x in (mean, covariance, y, matrix, noise))
    predicted = a @ c @ a.T + s
    gain = np.linalg.solve(predicted, a @ c).T
    log_evidence = scipy.stats.multivariate_normal.logpdf(y, a @ m, predicted)
    return m + gain @ (y - a @ m), c - gain @ a @ c, float(log_evidence)


def mixture_posterior(
    weights: ArrayLike,
    means: ArrayLike,
    covariances: ArrayLike,
    y: ArrayLike,
    matrix: ArrayLike,
    noise: ArrayLike,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The same for a mixture of normals: posterior weights, means, covariances and log p(y)."""
    parts = [
        linear_gaussian_posterior(m, c, y, matrix, noise)
        for m, c in zip(np.asarray(means), np.asarray(covariances), strict=True)
    ]
    log_joint = np.log(np.asarray(weights, np.float64)) + np.array([part[2] for part in parts])
    log_evidence = scipy.special.logsumexp(log_joint)
    return (
        np.exp(log_joint - log_evidence),
        np.array([part[0] for part in parts]),
        np.array([part[1] for part in parts]),
        float(log_evidence),
    )


# Priors, as data -------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """A mixture of normal vectors."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        """Log-density of events on the last axis, in nats."""
        parts = [
            np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(np.asarray(x))
            for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return scipy.special.logsumexp(parts, axis=0)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance."""
        mean = self.weights @ self.means
        offsets = self.means - mean
        within = np.einsum("k,kij->ij", self.weights, self.covariances)
        return mean, within + np.einsum("k,ki,kj->ij", self.weights, offsets, offsets)


class Table(NamedTuple):
    """Probabilities of listed states."""

    states: np.ndarray
    probabilities: np.ndarray

    def counts(self, draws: ArrayLike) -> np.ndarray:
        """How often each listed state, and at the end any other, was drawn."""
        draws = np.asarray(draws).reshape(-1, 1, *self.states.shape[1:])
        hits = (draws == self.states).reshape(draws.shape[0], len(self.states), -1).all(-1)
        return np.append(hits.sum(axis=0), (~hits.any(axis=1)).sum())
