import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from diffppl.likelihood.parzen import BANDWIDTHS, parzen

from .statistics import assert_within_standard_errors

RNG = np.random.default_rng(0)
SAMPLES, VALIDATION, TEST = (
    RNG.normal(size=(n, 3, 2)) * [1.0, 0.3] + 0.2 * np.arange(3)[:, None] for n in (60, 25, 31)
)
WIDTHS = [0.15, 0.3, 0.6, 1.2]


def brute_force(samples, x, width):
    """Window by window, in double precision."""
    samples, x = samples.reshape(len(samples), -1), x.reshape(len(x), -1)
    window = stats.multivariate_normal(np.zeros(x.shape[1]), width**2 * np.eye(x.shape[1]))
    logs = np.array([[window.logpdf(point - sample) for sample in samples] for point in x])
    return logsumexp(logs, axis=1) - np.log(len(samples))


def test_it_is_the_mean_of_the_windows_at_the_bandwidth_that_validation_prefers():
    found = parzen(SAMPLES, VALIDATION, TEST, bandwidths=WIDTHS)
    curve = [brute_force(SAMPLES, VALIDATION, width).mean() for width in WIDTHS]
    np.testing.assert_allclose(found.validation, curve, rtol=1e-4)
    best = WIDTHS[int(np.argmax(curve))]
    assert best in WIDTHS[1:3]
    assert float(found.bandwidth) == np.float32(best)
    truth = brute_force(SAMPLES, TEST, best)
    estimate = found.log_likelihood
    np.testing.assert_allclose(estimate.per_example, truth, rtol=1e-4)
    np.testing.assert_allclose(estimate.value, truth.mean(), rtol=1e-4)
    error = truth.std(ddof=1) / np.sqrt(31)
    np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-4)
    np.testing.assert_allclose(estimate.bits, truth.mean() / np.log(2), rtol=1e-4)
    assert repr(found) == (
        f"ParzenEstimate({truth.mean():.3f} ± {error:.3f} nats, bandwidth={best:.3g})"
    )


def test_blocks_and_far_origins_change_nothing():
    whole = parzen(SAMPLES, VALIDATION, TEST, bandwidths=WIDTHS)
    for shift, rtol in [(0.0, 1e-5), (1_000.0, 1e-4)]:
        moved = parzen(
            SAMPLES + shift, VALIDATION + shift, TEST + shift, bandwidths=WIDTHS, batch_size=7
        )
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol)


def test_on_average_over_samples_it_is_the_density_blurred_by_the_window():
    samples = jnp.asarray(RNG.normal(size=(40_000, 1)) * 0.7 + 0.4)
    x = np.array([[-0.9], [0.1], [1.5]])
    found = parzen(samples, x, x, bandwidths=[0.5]).log_likelihood
    truth = stats.norm(0.4, np.hypot(0.7, 0.5)).pdf(x[:, 0])
    windows = stats.norm(np.asarray(samples).T, 0.5).pdf(x)
    error = windows.std(axis=1) / np.sqrt(40_000)
    assert_within_standard_errors(np.exp(found.per_example), truth, error)
    assert np.all(np.isnan(found.per_example_error))


def test_the_default_bandwidths_are_the_protocols():
    np.testing.assert_allclose(BANDWIDTHS, 10 ** np.linspace(-1, 0, 10))


def test_a_bandwidth_at_an_end_is_doubtful():
    with pytest.warns(UserWarning, match="the best bandwidth, 0.3, is at an end of bandwidths"):
        parzen(SAMPLES, VALIDATION, TEST, bandwidths=[0.3, 0.01])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": np.zeros((0, 3, 2))}, "samples is empty"),
        ({"validation": np.zeros((5, 6))}, r"validation has events of shape \(6,\)"),
        ({"x_test": np.full((5, 3, 2), np.nan)}, "x_test must be finite"),
        ({"bandwidths": [0.1, 0.0]}, "bandwidths="),
        ({"bandwidths": []}, "bandwidths="),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_input_is_named(change, message):
    names = {"samples": SAMPLES, "validation": VALIDATION, "x_test": TEST}
    options = {"bandwidths": WIDTHS, **names, **change}
    data = [options.pop(name) for name in names]
    with pytest.raises(ValueError, match=message):
        parzen(*data, **options)
