"""Whether ranks are uniform: a test of their cumulative distribution, and its band.

N ranks in {0, .., L} are uniform if, at each of several points k, the number of ranks below k is
Binomial(N, k / (L + 1)). The statistic is the smallest two-sided binomial probability over the
points,

    gamma = min_k 2 min{ P(B_k <= c_k), P(B_k >= c_k) },        c_k = #{ranks < k},

and its p-value, P(gamma <= g) for uniform ranks, counts all the points at once. It is exact: with
Poisson numbers of ranks between the points, given that they are N in all, the counts are a Markov
chain, and gamma > g where each count stays in an interval. The band is the same test turned round:
ranks stay inside it everywhere if, and only if, the p-value exceeds 1 - prob.

References:
    Säilynoja, Bürkner and Vehtari 2022, "Graphical test for discrete uniformity and its
    applications in goodness-of-fit evaluation and multiple sample comparison", section 2.
"""

import bisect
import functools
from typing import NamedTuple

import numpy as np

_POINTS = 100
_SLACK = 1 + 1e-9  # equal statistics come out of equal counts, but for their rounding


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


@functools.lru_cache(maxsize=8)
def null(num: int, num_samples: int) -> Null:
    """The null of `num` ranks in {0, .., `num_samples`}."""
    from scipy.stats import binom

    points = np.unique(np.linspace(1, num_samples, min(num_samples, _POINTS)).round().astype(int))
    position = points / (num_samples + 1)
    counts = np.arange(num + 1)[:, None]
    tails = 2 * np.minimum(binom.cdf(counts, num, position), binom.sf(counts - 1, num, position))
    return Null(points, tails)


def _counts(ranks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How many ranks (first axis) lie below each point (a new last axis)."""
    return np.stack([(ranks < k).sum(axis=0) for k in points], axis=-1)


def _probability_of(gamma: np.ndarray, num: int, num_samples: int) -> np.ndarray:
    """P(gamma <= g) of `num` uniform ranks, for each g of a vector; errors are below 1e-12."""
    from scipy.signal import convolve
    from scipy.stats import poisson

    points, tails = null(num, num_samples)
    counts = np.arange(num + 1)
    steps = np.diff(points, prepend=0) * num / (num_samples + 1)
    at = np.zeros((gamma.size, num + 1))
    at[:, 0] = 1.0
    left, found = float(num), np.zeros(gamma.size)
    for step, tail in zip(steps, tails.T, strict=True):
        at = convolve(at, poisson.pmf(counts, step)[None])[:, : num + 1]
        left -= step
        is_out = tail <= gamma[:, None] * _SLACK
        total_is_num = poisson.pmf(num - counts, left) / poisson.pmf(num, num)
        found += np.where(is_out, at, 0.0) @ total_is_num
        at = np.where(is_out, 0.0, at)
    return np.clip(found, 0.0, 1.0)


def pvalues(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The p-value of each column of ranks, shape `ranks.shape[1:]`."""
    points, tails = null(len(ranks), num_samples)
    gamma = tails[_counts(ranks, points), np.arange(points.size)].min(axis=-1)
    different, which = np.unique(gamma, return_inverse=True)
    found = _probability_of(different, len(ranks), num_samples)
    return np.asarray(found[which].reshape(gamma.shape))


def ecdf_difference(ranks: np.ndarray, num_samples: int) -> np.ndarray:
    """The ECDF of each column less the uniform CDF at the band's points (a new last axis)."""
    points = null(len(ranks), num_samples).points
    return _counts(ranks, points) / len(ranks) - points / (num_samples + 1)


def band(num: int, num_samples: int, prob: float) -> Band:
    """The band that `num` uniform ranks stay within, at all points at once, with `prob`."""
    points, tails = null(num, num_samples)
    values = np.unique(tails)

    def is_inside(index: int) -> int:
        return int(_probability_of(values[[index]], num, num_samples)[0] > 1 - prob)

    least = bisect.bisect_left(range(values.size - 1), 1, key=is_inside)
    inside = tails * _SLACK >= values[least]
    position = points / (num_samples + 1)
    lower = inside.argmax(axis=0)
    upper = num - inside[::-1].argmax(axis=0)
    return Band(position, lower / num - position, upper / num - position)
