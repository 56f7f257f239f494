"""Predictions: the raw output that the truth would need gives back the truth.

And the start of training: which predictions make an untrained network, one that says zero, the
forward chain turned round.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp
from diffppl.predictions.prediction import AbstractPrediction

from . import oracles
from .registry import EVENT_SHAPE, PREDICTIONS, PROCESSES

predictions = dp.predictions

T = 6
X_0 = np.array([0.7, -1.9, 0.2])
EPS = np.array([-0.4, 0.8, 1.5])
RAW_VARIANCE = np.array([0.3, -0.5, -2.0])


@pytest.fixture
def process(x64):
    return dp.GaussianDiffusion(dp.schedules.cosine(T))


def levels(process, t):
    alpha_bar, noise = process.schedule.alpha_bar()[t], process.schedule.one_minus_alpha_bar()[t]
    return float(jnp.sqrt(alpha_bar)), float(jnp.sqrt(noise))


def channels(prediction, process):
    return int(np.prod(prediction.output_shape(process, EVENT_SHAPE))) // int(np.prod(EVENT_SHAPE))


def zero_kernel(prediction, process, x_t, t):
    """The reverse kernel of a network that says zero."""
    raw = jnp.zeros(prediction.output_shape(process, EVENT_SHAPE))
    return process.reverse(x_t, prediction.estimate(process, raw, x_t, t), t)


# Round trips -----------------------------------------------------------------------------------

TRUE_RAW = {
    "data": lambda a, s: X_0,
    "noise": lambda a, s: EPS,
    "velocity": lambda a, s: a * EPS - s * X_0,
}


@pytest.mark.parametrize("t", [1, 3, T])
@pytest.mark.parametrize("name", [name for name in PREDICTIONS if not name.startswith("kernel")])
def test_the_true_raw_output_gives_back_the_data(name, t, process):
    prediction = PREDICTIONS[name]()
    a, s = levels(process, t)
    raw = jnp.asarray(TRUE_RAW[name.split("-")[0]](a, s))
    if channels(prediction, process) == 2:
        raw = jnp.stack([raw, jnp.asarray(RAW_VARIANCE)])
    estimate = prediction.estimate(process, raw, jnp.asarray(a * X_0 + s * EPS), t)
    np.testing.assert_allclose(estimate.mean, X_0, rtol=1e-9)
    variance = {
        predictions.FittedVariance: np.full(3, s**2),  # not fitted yet
        predictions.LowerVariance: np.zeros(3),
        predictions.UpperVariance: np.full(3, s**2),
        predictions.LearnedVariance: s**2 * np.exp(RAW_VARIANCE),
    }[type(getattr(prediction, "prediction", prediction).variance)]  # of what is clipped
    np.testing.assert_allclose(estimate.variance, variance, rtol=1e-9)


@pytest.mark.parametrize("t", [2, 4, T])
@pytest.mark.parametrize("name", [name for name in PREDICTIONS if name.startswith("kernel")])
def test_kernel_moments_are_the_moments_of_the_kernel(name, t, process):
    prediction, x_t = PREDICTIONS[name](), jnp.asarray(EPS)
    z, z_sigma = np.array([0.4, -0.3, 1.1]), np.array([0.5, -1.0, 0.2])
    estimate = prediction.estimate(process, jnp.asarray(np.stack([z, z_sigma])), x_t, t)
    kernel = process.reverse(x_t, estimate, t)
    beta = float(process.schedule.beta()[t])
    sigma2 = 1 / (1 + np.exp(-z_sigma) * (1 - beta) / beta)
    mean = {
        "kernel-moments": (EPS - z) * np.sqrt(1 - sigma2) + z,
        "kernel-moments-printed": (EPS - z) * (1 - sigma2) + z,
        "kernel-moments-code": np.sqrt(1 - beta) * EPS + np.sqrt(beta) * z,
    }[name]
    np.testing.assert_allclose(kernel.variance, sigma2, rtol=1e-9)
    np.testing.assert_allclose(kernel.mean, mean, rtol=1e-9)


# The start of training ---------------------------------------------------------------------------

FORWARD_AT_ZERO = [
    "velocity",
    "velocity-upper",
    "velocity-learned",
    "kernel-moments",
    "kernel-moments-code",
]


@pytest.mark.parametrize("schedule", [dp.schedules.sohl_dickstein, dp.schedules.cosine])
@pytest.mark.parametrize("name", FORWARD_AT_ZERO)
def test_zero_output_is_the_forward_kernel(name, schedule):
    process, x_t = dp.GaussianDiffusion(schedule(100)), jnp.asarray(EPS, jnp.float32)
    for t in (2, 50, 99):
        kernel, forward = zero_kernel(PREDICTIONS[name](), process, x_t, t), process.transition
        np.testing.assert_allclose(kernel.mean, forward(x_t, t).mean, atol=1e-6)
        np.testing.assert_allclose(
            kernel.variance, np.broadcast_to(forward(x_t, t).variance, 3), rtol=1e-5, atol=1e-7
        )


def test_zero_velocity_with_lower_variance_has_the_mean_alone_right(process):
    x_t = jnp.asarray(EPS)
    kernel = zero_kernel(PREDICTIONS["velocity-lower"](), process, x_t, 4)
    forward = process.transition(x_t, 4)
    np.testing.assert_allclose(kernel.mean, forward.mean, rtol=1e-12)
    assert np.all(kernel.variance < forward.variance)


def bits_lost_at_zero(prediction, process):
    """K of the null model less K of zero output, bits per dimension, for data N(0, 1).

    The exact reverse kernel is then the forward one, and the KL is quadratic in x_t: its mean over
    N(0, 1) is its value at x_t = 1 and at -1.
    """
    x_t = jnp.array([1.0, -1.0, 1.0])

    def at(t):
        return process.kl(process.transition(x_t, t), zero_kernel(prediction, process, x_t, t))[0]

    return float(jnp.sum(jax.jit(jax.vmap(at))(jnp.arange(2, process.num_steps + 1)))) / np.log(2)


@pytest.mark.parametrize(
    ("schedule", "bits"),
    [
        (dp.schedules.sohl_dickstein(1000), 1.10),
        (dp.schedules.sohl_dickstein(40), 0.54),
    ],
)
def test_the_printed_head_starts_far_below_the_null_model(schedule, bits, x64):
    process = dp.GaussianDiffusion(schedule)
    lost = bits_lost_at_zero(predictions.KernelMoments(predictions.PrintedHead()), process)
    assert lost == pytest.approx(bits, abs=0.01)
    beta = np.asarray(schedule.beta(), np.float64)[2:]
    by_hand = oracles.normal_kl(np.sqrt(1 - beta), beta, 1 - beta, beta).sum() / np.log(2)
    assert lost == pytest.approx(by_hand, rel=1e-6)
    assert bits_lost_at_zero(predictions.KernelMoments(), process) == pytest.approx(0, abs=1e-9)


# Shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREDICTIONS)
def test_shape_of_the_raw_output(name, process):
    prediction = PREDICTIONS[name]()
    assert isinstance(prediction, AbstractPrediction)
    two = name.endswith("learned") or name.startswith("kernel")
    assert prediction.output_shape(process, EVENT_SHAPE) == ((2, 3) if two else (3,))
    assert prediction.output_shape(process, ()) == ((2,) if two else ())


def test_raw_output_of_bits_and_categories_is_logits():
    reciprocal = dp.schedules.reciprocal(T)
    bits, masked = (PROCESSES[n](reciprocal) for n in ("bernoulli", "categorical-absorbing"))
    assert predictions.Data().output_shape(bits, (2, 5)) == (2, 5)
    assert predictions.Data().output_shape(masked, (2, 5)) == (2, 5, 3)
    logits = jnp.array([[0.1, -2.0, 0.4]])
    estimate = predictions.Data().estimate(masked, logits, jnp.array([3]), 2)
    np.testing.assert_array_equal(estimate.logits, logits)


# What they refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PREDICTIONS if not name.startswith("data")])
def test_predictions_of_real_data_refuse_bits(name):
    prediction, bits = PREDICTIONS[name](), dp.BernoulliDiffusion(dp.schedules.reciprocal(T))
    with pytest.raises(ValueError, match=r"prediction=\w+\(\) is for real data.*BernoulliDiffus"):
        prediction.output_shape(bits, EVENT_SHAPE)


@pytest.mark.parametrize("name", ["data-upper", "data-learned"])
def test_bits_have_no_variance(name):
    bits = dp.BernoulliDiffusion(dp.schedules.reciprocal(T))
    with pytest.raises(ValueError, match=r"sets a variance, which BernoulliDiffusion"):
        PREDICTIONS[name]().output_shape(bits, EVENT_SHAPE)


def test_noise_cannot_start_from_pure_noise():
    process = dp.GaussianDiffusion(dp.schedules.reciprocal(T))
    with pytest.raises(ValueError, match=r"Noise\(\) cannot be used .* alpha_bar_T = 0"):
        predictions.Noise().output_shape(process, EVENT_SHAPE)
