"""A test of the uniformity of ranks by their ECDF, and its simultaneous confidence band.

For N uniform ranks in {0, .., L} the number of ranks below k is Binomial(N, k / (L + 1)). The test
statistic is the smallest two-sided binomial probability over a set of points k,

    gamma = min_k 2 min{ P(B_k <= c_k), P(B_k >= c_k) },        c_k = #{ranks < k},

and the p-value is P(gamma <= g) under uniformity, which accounts for all points jointly. It is
exact: uniform counts are independent Poisson increments between the points conditioned on their sum
being N, so c_k is a Markov chain, and gamma > g if every c_k stays in an interval; a recursion over
k yields the probability. The band is the inversion of the test: the ECDF is inside it at all points
if and only if the p-value exceeds 1 - prob.

References:
    Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison", section 2.
"""

import bisect
import functools
from typing import NamedTuple

import numpy as np

_POINTS = 100  # at most; the cost of a p-value is linear in it
_ROUNDING = 1 + 1e-9  # factor within which two values of the statistic count as equal


class Band(NamedTuple):
    """Simultaneous confidence band of the ECDF of uniform ranks minus the uniform CDF.

    All fields have shape `(points,)`: `position` in (0, 1), and the limits of the band there.
    """

    position: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Null(NamedTuple):
    """The null distribution of the counts c_k, for one N and L."""

    points: np.ndarray  # the points k
    tails: np.ndarray  # two-sided probability of each count, shape (N + 1, points)


@functools.lru_cache(maxsize=8)
def null(num: int, num_samples: int) -> Null:
    """Return the null distribution for `num` ranks in {0, .., `num_samples`}."""
    from scipy.stats import binom

    points = np.unique(np.linspace(1, num_samples, min(num_samples, _POINTS)).round().astype(int))
    position = points / (num_samples + 1)
    counts = np.arange(num + 1)[:, None]
    tails = 2 * np.minimum(binom.cdf(counts, num, position), binom.sf(counts - 1, num, position))
    return Null(points, tails)


def _counts(ranks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Count the ranks (first axis) below each point (a new last axis)."""
    return np.stack([(ranks < k).sum(axis=0) for k in points], axis=-1)


def _probability_of(gamma: np.ndarray, num: int, num_samples: int) -> np.ndarray:
    """Return P(gamma <= g) of `num` uniform ranks, for a vector of g; errors are below 1e-12."""
    from scipy.signal import convolve
    from scipy.stats import poisson

    points, tails = null(num, num_samples)
    counts = np.arange(num + 1)
    rates = np.diff(points, prepend=0) * num / (num_samples + 1)  # of the Poisson increments
    # surviving[i, c]: probability of the count c at point k, with no earlier crossing of gamma[i]
    surviving = np.zeros((gamma.size, num + 1))
    surviving[:, 0] = 1.0
    remaining, crossed = float(num), np.zeros(gamma.size)
    for rate, tail in zip(rates, tails.T, strict=True):
        surviving = convolve(surviving, poisson.pmf(counts, rate)[None])[:, : num + 1]
        remaining -= rate
        is_out = tail <= gamma[:, None] * _ROUNDING
        # First crossing at this point, times P(total = N | count) / P(total = N)
        total_is_num = poisson.pmf(num - counts, remaining) / poisson.pmf(num, num)
        crossed += np.where(is_out, surviving, 0.0) @ total_is_num
        surviving = np.where(is_out, 0.0, surviving)
    return np.clip(crossed, 0.0, 1.0)


def pvalues(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """Return the p-value of each column of ranks, shape `ranks.shape[1:]`."""
    points, tails = null(len(ranks), num_samples)
    gamma = tails[_counts(ranks, points), np.arange(points.size)].min(axis=-1)
    distinct, inverse = np.unique(gamma, return_inverse=True)
    probabilities = _probability_of(distinct, len(ranks), num_samples)
    return np.asarray(probabilities[inverse].reshape(gamma.shape))


def ecdf_difference(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """Return the ECDF of each column minus the uniform CDF at all points (a new last axis)."""
    points = null(len(ranks), num_samples).points
    return _counts(ranks, points) / len(ranks) - points / (num_samples + 1)


def band(num: int, num_samples: int, prob: float) -> Band:
    """Return the simultaneous band that contains the ECDF of `num` uniform ranks with `prob`."""
    points, tails = null(num, num_samples)
    values = np.unique(tails)

    def is_inside(index: int) -> int:
        return int(_probability_of(values[[index]], num, num_samples)[0] > 1 - prob)

    # The smallest attainable gamma whose p-value exceeds 1 - prob: counts whose two-sided
    # probability is at least this are inside the band.
    critical = bisect.bisect_left(range(values.size - 1), 1, key=is_inside)
    inside = tails * _ROUNDING >= values[critical]
    position = points / (num_samples + 1)
    lower = inside.argmax(axis=0)
    upper = num - inside[::-1].argmax(axis=0)
    return Band(position, lower / num - position, upper / num - position)
