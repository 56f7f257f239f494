"""The comparisons accept the truth and refuse what is a little off."""

import numpy as np
import pytest
import scipy.stats

from . import statistics

RNG = np.random.default_rng(0)
COVARIANCE = np.array([[2.0, 0.6], [0.6, 0.5]])
SAMPLES = RNG.multivariate_normal([1.0, -2.0], COVARIANCE, size=20_000)
PROBABILITIES = np.array([0.5, 0.3, 0.2, 0.0])
COUNTS = RNG.multinomial(20_000, PROBABILITIES)


def test_accepts_the_truth():
    statistics.assert_moments(SAMPLES, [1.0, -2.0], COVARIANCE)
    statistics.assert_counts(COUNTS, PROBABILITIES)
    statistics.assert_same_distribution(SAMPLES[:, 0], scipy.stats.norm(1, 2**0.5).cdf)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: statistics.assert_mean(SAMPLES, [1.06, -2.0]),
        lambda: statistics.assert_covariance(SAMPLES, [1.0, -2.0], np.diag(np.diag(COVARIANCE))),
        lambda: statistics.assert_counts(COUNTS, [0.52, 0.28, 0.2, 0.0]),
        lambda: statistics.assert_counts([10, 10, 1], [0.5, 0.5, 0.0]),
        lambda: statistics.assert_counts([10], [1.0]),
        lambda: statistics.assert_same_distribution(SAMPLES[:, 0], scipy.stats.norm(1, 1.3).cdf),
        lambda: statistics.assert_within_standard_errors(np.nan, 0.0, 1.0),
        lambda: statistics.assert_within_standard_errors(0.0, 0.0, 0.0),
    ],
)
def test_refuses_what_is_off(wrong):
    with pytest.raises(AssertionError):
        wrong()
