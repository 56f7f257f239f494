"""Comparisons of random numbers with the truth, whose tolerances come from their own noise."""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike


def assert_within_standard_errors(
    estimate: ArrayLike, truth: ArrayLike, standard_error: ArrayLike, num: float = 4.0
) -> None:
    """Every |estimate - truth| is at most `num` standard errors, which must not be zero or NaN."""
    estimate, truth, error = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (estimate, truth, standard_error))
    )
    assert np.all(np.isfinite(estimate)), f"not finite: {estimate}"
    assert np.all(np.isfinite(error) & (error > 0)), f"standard errors must be > 0: {error}"
    scores = (estimate - truth) / error
    assert np.all(np.abs(scores) <= num), (
        f"off by {scores.flat[np.argmax(np.abs(scores))]:.2f} standard errors: "
        f"estimate {estimate}, truth {truth}, standard error {error}"
    )


def assert_mean(samples: ArrayLike, truth: ArrayLike, num: float = 4.0) -> None:
    """The mean of independent samples (first axis) is `truth`, within `num` standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(samples.shape[0])
    assert_within_standard_errors(samples.mean(axis=0), truth, error, num)


def assert_covariance(
    samples: ArrayLike, mean: ArrayLike, covariance: ArrayLike, num: float = 4.0
) -> None:
    """Independent samples, shape `(n, d)`, have this covariance about this (true) mean.

    The standard error of each entry is the spread of its own products, so nothing need be normal.
    """
    centred = np.asarray(samples, np.float64) - np.asarray(mean)
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance, num)


def assert_moments(
    samples: ArrayLike, mean: ArrayLike, covariance: ArrayLike, num: float = 4.0
) -> None:
    """Independent samples, shape `(n, d)`, have this mean and this covariance."""
    assert_mean(samples, mean, num)
    assert_covariance(samples, mean, covariance, num)


def assert_counts(counts: ArrayLike, probabilities: ArrayLike, significance: float = 1e-4) -> None:
    """Counts of independent draws fit probabilities (Pearson's chi-square).

    The rarest states are pooled until five draws are expected of them; states of probability 0
    must be empty.
    """
    counts = np.asarray(counts, np.float64).ravel()
    probabilities = np.asarray(probabilities, np.float64).ravel()
    assert counts.shape == probabilities.shape
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-5)
    impossible = probabilities == 0
    assert np.all(counts[impossible] == 0), f"impossible states drawn: {counts[impossible]}"
    expected = counts.sum() * probabilities / probabilities.sum()
    order = np.argsort(np.where(impossible, np.inf, expected))[: np.sum(~impossible)]
    observed, expected = counts[order], expected[order]
    pooled = max(1, int(np.searchsorted(np.cumsum(expected), 5)) + 1)  # the rarest, as one bin
    observed = np.append(observed[:pooled].sum(), observed[pooled:])
    expected = np.append(expected[:pooled].sum(), expected[pooled:])
    assert observed.size > 1, "one state alone cannot be tested: draw more"
    value = scipy.stats.chisquare(observed, expected).pvalue
    assert value > significance, f"p = {value:.2e}: observed {observed}, expected {expected}"


def assert_same_distribution(samples: ArrayLike, cdf: object, significance: float = 1e-4) -> None:
    """Independent draws of one number follow a cumulative distribution (Kolmogorov-Smirnov)."""
    value = scipy.stats.kstest(np.asarray(samples, np.float64).ravel(), cdf).pvalue
    assert value > significance, f"p = {value:.2e}"
