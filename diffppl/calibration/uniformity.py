"""Whether ranks are uniform: a test of their cumulative distribution, and its band.

N ranks in {0, .., L} are uniform if, at each of several points k, the number of ranks below k is
Binomial(N, k / (L + 1)). The statistic is the smallest two-sided binomial probability over the
points,

    gamma = min_k 2 min{ P(B_k <= c_k), P(B_k >= c_k) },        c_k = #{ranks < k},

and its distribution for uniform ranks is simulated, so that the p-value counts all the points at
once. The band is the same test turned round: ranks stay inside it everywhere if, and only if, gamma
is at least its own quantile.

References:
    Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison", section 2.
"""

import functools
from typing import NamedTuple

import numpy as np

_POINTS = 100
_TRIALS = 10_000


class Band(NamedTuple):
    """Where the ECDF of uniform ranks, less the uniform CDF, stays with a given probability.

    All have shape `(points,)`: `position` in (0, 1), and the ends of the band there.
    """

    position: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Null(NamedTuple):
    """What uniform ranks do, for one N and L."""

    points: np.ndarray  # the k
    tails: np.ndarray  # two-sided probability of each count, shape (N + 1, points)
    gamma: np.ndarray  # sorted, of simulated uniform ranks


@functools.lru_cache(maxsize=8)
def null(num: int, num_samples: int) -> Null:
    """The simulated null of `num` ranks in {0, .., `num_samples`}; the same for each call."""
    from scipy.stats import binom

    points = np.unique(np.linspace(1, num_samples, min(num_samples, _POINTS)).round().astype(int))
    position = points / (num_samples + 1)
    counts = np.arange(num + 1)[:, None]
    tails = 2 * np.minimum(binom.cdf(counts, num, position), binom.sf(counts - 1, num, position))
    steps = np.diff(position, prepend=0.0, append=1.0)
    bins = np.random.default_rng(0).multinomial(num, steps, size=_TRIALS)
    gamma = _gamma(tails, np.cumsum(bins, axis=1)[:, :-1])
    return Null(points, tails, np.sort(gamma))


def _gamma(tails: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The statistic; `counts` has the points on its last axis."""
    return np.asarray(tails[counts, np.arange(tails.shape[1])].min(axis=-1))


def _counts(ranks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How many ranks (first axis) lie below each point (a new last axis)."""
    return np.stack([(ranks < k).sum(axis=0) for k in points], axis=-1)


def pvalues(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The p-value of each column of ranks, shape `ranks.shape[1:]`; never below 1e-4."""
    points, tails, simulated = null(len(ranks), num_samples)
    gamma = _gamma(tails, _counts(ranks, points))
    # Equal statistics come out of equal counts; the slack is for their rounding.
    as_extreme = np.searchsorted(simulated, gamma * (1 + 1e-9), side="right")
    return np.asarray((1 + as_extreme) / (1 + simulated.size))


def ecdf_difference(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The ECDF of each column less the uniform CDF at the band's points (a new last axis)."""
    points = null(len(ranks), num_samples).points
    return _counts(ranks, points) / len(ranks) - points / (num_samples + 1)


def band(num: int, num_samples: int, prob: float) -> Band:
    """The band that `num` uniform ranks stay within, at all points at once, with `prob`."""
    points, tails, simulated = null(num, num_samples)
    inside = tails >= np.quantile(simulated, 1 - prob, method="lower") * (1 - 1e-9)
    position = points / (num_samples + 1)
    lower = inside.argmax(axis=0)
    upper = num - inside[::-1].argmax(axis=0)
    return Band(position, lower / num - position, upper / num - position)
