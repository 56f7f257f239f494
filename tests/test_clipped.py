"""A model whose E[x_0 | x_t] stays within bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import diffppl as dp

from .statistics import assert_mean

KEY = jax.random.key(0)
LOC, SCALE = 3.0, 2.0  # user units
PROCESS = dp.GaussianDiffusion(dp.schedules.log_snr_linear(30, noise_to_signal=(0.05, 8.0)))


def normal(scale: float = SCALE) -> dp.DiffusionModel:
    """N(LOC, scale^2), which is not bounded at all."""
    network = dp.denoisers.Gaussian(PROCESS.schedule, np.zeros(2), np.ones(2))
    return dp.DiffusionModel(PROCESS, network, (2,), scaling=dp.Scaling(LOC, scale))


@pytest.mark.parametrize("scale", [SCALE, -SCALE])
def test_the_estimate_is_clipped_in_the_units_of_the_user(scale: float):
    model, low, high = normal(scale), np.array([2.0, -1.0]), 5.0
    bounded = dp.clipped(model, low, high)
    for t in (1, 9, 30):
        x_t = 3 * jax.random.normal(KEY, (500, 2))
        found, free = (np.asarray(m.scaling.to_user(m.denoise(x_t, t))) for m in (bounded, model))
        np.testing.assert_allclose(found, np.clip(free, low, high), atol=1e-5)
        assert t == 30 or np.any(found != free)
        kernels = (m.reverse_kernel(x_t, t) for m in (bounded, model))
        np.testing.assert_array_equal(*(k.variance for k in kernels))


def test_bounds_that_are_never_met_change_nothing():
    draws = [dp.sample(KEY, model, (50,)) for model in (normal(), dp.clipped(normal(), -1e4, 1e4))]
    np.testing.assert_allclose(*draws, rtol=1e-5, atol=1e-5)


def test_the_clipped_chain_has_the_mean_of_its_recursion():
    """The marginals of the chain on a fine grid, step by step."""
    low, high = -0.4, 1.5  # model units
    bounded = dp.clipped(normal(), LOC + SCALE * low, LOC + SCALE * high)
    abar = np.asarray(PROCESS.schedule.alpha_bar(), np.float64)
    x = np.linspace(-7, 7, 561)
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    for t in range(len(abar) - 1, 1, -1):
        beta = 1 - abar[t] / abar[t - 1]
        x_0 = np.clip(np.sqrt(abar[t]) * x, low, high)  # of N(0, 1)
        mean = np.sqrt(abar[t - 1]) * beta * x_0 + np.sqrt(1 - beta) * (1 - abar[t - 1]) * x
        mean, variance = mean / (1 - abar[t]), beta  # with Var[x_0 | x_t] = 1 - abar[t]
        kernel = np.exp(-0.5 * (x[:, None] - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        density = scipy.integrate.trapezoid(kernel * density, x, axis=1)
    wanted = scipy.integrate.trapezoid(np.sqrt(1 - PROCESS.schedule.beta()[1]) * x * density, x)
    draws = dp.sample(KEY, bounded, (40_000,))
    assert_mean((np.asarray(draws)[:, 0] - LOC) / SCALE, wanted)
    assert abs(wanted) > 0.1  # without bounds it is 0


def test_a_guided_model_may_be_clipped_and_stays_a_prior():
    inner = dp.networks.MLP((2,), width=8, depth=1, context_shape=(3,), key=KEY)
    model = dp.DiffusionModel(
        PROCESS,
        dp.networks.OptionalContext(inner, (2,)),
        (2,),
        context_shape=(2,),
        scaling=dp.Scaling(LOC, SCALE),
    )
    bounded = dp.clipped(dp.guided(model, 3.0), 1.0, 4.0)
    x = np.asarray(dp.sample(KEY, bounded, (), context=jnp.eye(2)))
    assert x.shape == (2, 2)
    assert np.all(np.isfinite(x))
    assert bounded(jnp.ones(2)).event_shape == (2,)


def test_what_cannot_be_clipped_is_refused():
    bits = dp.DiffusionModel(
        dp.BernoulliDiffusion(dp.schedules.reciprocal(5)), dp.networks.MLP((2,), key=KEY), (2,)
    )
    with pytest.raises(ValueError, match=r"clipped is for real data.*BernoulliDiffusion"):
        dp.clipped(bits, 0, 1)
    unscaled = dp.DiffusionModel(PROCESS, dp.networks.MLP((2,), key=KEY), (2,))
    with pytest.raises(ValueError, match="fit the model first"):
        dp.clipped(unscaled, 0, 1)
    for low, high in ((1.0, 1.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="must be less than"):
            dp.clipped(normal(), low, high)
    moments = dp.DiffusionModel(
        PROCESS,
        dp.networks.MLP((2,), output_shape=(2, 2), key=KEY),
        (2,),
        prediction=dp.predictions.KernelMoments(),
        scaling=dp.Scaling(),
    )
    with pytest.raises(ValueError, match="KernelMoments"):
        dp.clipped(moments, 0, 1)
