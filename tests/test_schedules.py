"""Schedules: the contract of all of them, then the numbers each is known by."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp

from .registry import SCHEDULES

schedules = dp.schedules

# The contract ------------------------------------------------------------------------------------


@pytest.fixture(params=SCHEDULES)
def make(request):
    return SCHEDULES[request.param]


@pytest.mark.parametrize("num_steps", [2, 30])
def test_levels_run_from_data_towards_noise(make, num_steps):
    schedule = make(num_steps)
    assert schedule.num_steps == num_steps
    levels = (
        schedule.log_snr(),
        schedule.alpha_bar(),
        schedule.one_minus_alpha_bar(),
        schedule.beta(),
    )
    for level in levels:
        assert level.shape == (num_steps + 1,)
    log_snr, alpha_bar, noise, beta = (np.asarray(level) for level in levels)
    assert (log_snr[0], alpha_bar[0], noise[0], beta[0]) == (np.inf, 1, 0, 0)
    assert np.all(np.diff(log_snr) < 0)
    assert np.all((beta[1:] > 0) & (beta[1:] <= 1))
    assert np.all((alpha_bar >= 0) & (alpha_bar <= 1))


def test_names_agree_in_double_precision(make, x64):
    schedule = make(30)
    alpha_bar, beta = schedule.alpha_bar(), schedule.beta()
    np.testing.assert_allclose(alpha_bar + schedule.one_minus_alpha_bar(), 1.0, rtol=1e-15)
    np.testing.assert_allclose(jnp.cumprod(1 - beta), alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(schedule.log_alpha_bar()), alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(
        schedule.log_snr()[1:],
        jnp.log(alpha_bar[1:] / schedule.one_minus_alpha_bar()[1:]),
        rtol=1e-9,
    )


def test_single_precision_keeps_small_numbers(make):
    schedule = make(1000)
    with jax.enable_x64(True):
        exact = make(1000)
        beta, noise = np.asarray(exact.beta()), np.asarray(exact.one_minus_alpha_bar())
    # log alpha_bar is at most about 10, where float32 has steps of 1e-6.
    np.testing.assert_allclose(schedule.beta(), beta, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar(), noise, rtol=3e-6)


@pytest.mark.parametrize("num_kept", [2, 12, 30])
def test_respaced_chain_has_some_of_the_levels(make, num_kept):
    schedule = make(30)
    times = schedule.times(num_kept)
    assert times.shape == (num_kept + 1,)
    assert times[0] == 0
    assert times[1] == 1
    assert times[-1] == 30
    assert np.all(np.diff(times) > 0)
    shorter = schedule.respace(num_kept)
    assert shorter.num_steps == num_kept
    np.testing.assert_allclose(shorter.alpha_bar(), schedule.alpha_bar()[times], rtol=1e-6)
    np.testing.assert_allclose(shorter.beta()[1], schedule.beta()[1], rtol=1e-6)


@pytest.mark.parametrize("num_steps", range(1, 40))
def test_kept_times_never_repeat(num_steps):
    schedule = schedules.reciprocal(num_steps)
    for num_kept in range(min(2, num_steps), num_steps + 1):
        times = schedule.times(num_kept)
        assert np.all(np.diff(times) > 0)
        assert times[1] == 1


@pytest.mark.parametrize("num_kept", [0, 31, -1])
def test_times_out_of_range_are_refused(make, num_kept):
    with pytest.raises(ValueError, match=f"num_steps={num_kept} is not between 1 and .* 30"):
        make(30).times(num_kept)


def test_one_step_cannot_keep_both_ends(make):
    with pytest.raises(ValueError, match="num_steps=1 cannot keep both level 1 and level T"):
        make(30).respace(1)


@pytest.mark.parametrize("num_steps", [0, -3, True])
def test_number_of_steps_is_a_positive_whole_number(num_steps):
    for name in ("linear", "cosine", "log_snr_linear", "reciprocal", "sohl_dickstein"):
        with pytest.raises(ValueError, match="num_steps=.* must be a whole number, 1 or more"):
            getattr(schedules, name)(num_steps)
    with pytest.raises(ValueError, match="num_steps=.* must be a whole number, 2 or more"):
        schedules.Learned(num_steps, beta_1=0.01)


def test_repr_says_the_name_and_the_length(make):
    schedule = make(30)
    assert repr(schedule) == f"{type(schedule).__name__}(num_steps=30)"


# What each is known by ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 5, 100, 1000])
def test_reciprocal_removes_equal_shares_of_the_signal(num_steps):
    schedule = schedules.reciprocal(num_steps)
    t = np.arange(num_steps + 1)
    np.testing.assert_allclose(schedule.alpha_bar(), (num_steps - t) / num_steps, atol=1e-6)
    np.testing.assert_allclose(schedule.beta()[1:], 1 / (num_steps - t[1:] + 1), rtol=1e-3)
    assert schedule.alpha_bar()[-1] == 0
    assert schedule.beta()[-1] == 1


def test_sohl_dickstein_has_the_numbers_of_the_public_code():
    schedule = schedules.sohl_dickstein(1000)
    beta = np.asarray(schedule.beta())
    assert beta[1] == pytest.approx(0.00200, abs=5e-6)
    assert beta[2] == pytest.approx(0.00100, abs=5e-6)
    assert beta[1000] == pytest.approx(0.5, abs=1e-4)
    assert schedule.alpha_bar()[-1] == pytest.approx(9.92e-4, rel=1e-3)


def test_linear_is_linear_in_beta_and_ends_in_noise(x64):
    beta = schedules.linear(1000).beta()
    np.testing.assert_allclose(beta[1:], np.linspace(1e-4, 0.02, 1000), rtol=1e-9)
    given = schedules.linear(10, beta_start=0.1, beta_end=0.4)
    np.testing.assert_allclose(given.beta()[1:], np.linspace(0.1, 0.4, 10), rtol=1e-12)
    for num_steps in (25, 100, 1000):
        assert schedules.linear(num_steps).alpha_bar()[-1] < 1e-4


def test_cosine_is_a_squared_cosine_until_the_cap(x64):
    t = np.arange(101)
    cosine = np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        schedules.cosine(100).alpha_bar()[:-1], (cosine / cosine[0])[:-1], rtol=1e-10
    )
    assert schedules.cosine(100).beta()[-1] == pytest.approx(0.999)


def test_log_snr_linear_has_equal_ratios_between_the_asked_ends(x64):
    schedule = schedules.log_snr_linear(20, noise_to_signal=(0.02, 50.0))
    ratio = jnp.sqrt(schedule.one_minus_alpha_bar() / schedule.alpha_bar())[1:]
    np.testing.assert_allclose(ratio, np.geomspace(0.02, 50.0, 20), rtol=1e-10)


def test_from_log_snr_keeps_the_levels():
    levels = jnp.array([3.0, 1.0, -2.0])
    np.testing.assert_array_equal(schedules.Schedule(levels).log_snr(), [np.inf, *levels])


def test_learned_starts_linear_between_the_asked_ends(x64):
    schedule = schedules.Learned(9, beta_1=0.003, noise_to_signal=20.0)
    assert schedule.beta()[1] == pytest.approx(0.003)
    assert jnp.sqrt(schedule.one_minus_alpha_bar() / schedule.alpha_bar())[-1] == pytest.approx(
        20.0
    )
    np.testing.assert_allclose(np.diff(np.diff(schedule.log_snr()[1:])), 0, atol=1e-12)


def test_learned_gradients_are_zero_for_the_first_level_and_right_for_the_others(x64):
    schedule = schedules.Learned(5, beta_1=0.01)
    weights = jnp.array([0.3, -1.0, 0.7, 2.0, -0.4, 1.1])

    def loss(schedule):
        return jnp.sum(weights * schedule.beta()) + jnp.sum(
            weights * schedule.one_minus_alpha_bar()
        )

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(schedule)
    assert gradient.log_snr_1 == 0
    loss = eqx.filter_jit(loss)
    for i in range(4):
        nudge = jnp.zeros(4).at[i].set(1e-6)
        up, down = (
            eqx.tree_at(lambda s: s.raw_drops, schedule, schedule.raw_drops + sign * nudge)
            for sign in (1, -1)
        )
        slope = float(loss(up) - loss(down)) / 2e-6
        assert gradient.raw_drops[i] == pytest.approx(slope, rel=1e-6)
    assert schedule.beta()[1] == pytest.approx(0.01)


@pytest.mark.parametrize("old", schedules.RENAMED)
def test_an_old_name_warns_of_the_new_one(old):
    new = schedules.RENAMED[old]
    with pytest.warns(
        DeprecationWarning, match=rf"{old} is now schedules\.{new.__name__};"
    ) as found:
        # Without the type checks of the tests, which would be the caller.
        assert inspect.unwrap(schedules.__getattr__)(old) is new
    assert found[0].filename == __file__
    assert old not in schedules.__all__
    with pytest.warns(DeprecationWarning, match=old):
        assert getattr(schedules, old) is new
    with pytest.raises(AttributeError, match="no attribute 'cosines'"):
        _ = schedules.cosines


# What they refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: schedules.linear(5, beta_start=0.4, beta_end=0.1),
            "beta_start=0.4 must not be more",
        ),
        (lambda: schedules.linear(5, beta_start=0.0), "beta_start=0.0 must lie between 0 and 1"),
        (lambda: schedules.linear(5, beta_end=1.0), "beta_end=1.0"),
        (lambda: schedules.cosine(5, offset=-0.1), "offset=-0.1 must be 0 or more"),
        (lambda: schedules.cosine(5, beta_max=1.0), "beta_max=1.0 must lie between 0 and 1"),
        (lambda: schedules.log_snr_linear(5, (2.0, 1.0)), r"noise_to_signal=\(2.0, 1.0\)"),
        (
            lambda: schedules.log_snr_linear(5, (0.0, 1.0)),
            "noise_to_signal=.0.0, 1.0. must be two numbers, 0 < low < high",
        ),
        (lambda: schedules.Schedule(np.zeros(0)), r"log_snr has shape \(0,\)"),
        (lambda: schedules.Schedule(np.zeros((2, 2))), r"log_snr has shape \(2, 2\)"),
        (
            lambda: schedules.Schedule(np.array([1.0, 2.0])),
            "log_snr must fall at each step.*From t = 1 on it is 1, 2",
        ),
        (
            lambda: schedules.Schedule(np.array([1.0, np.nan])),
            "log_snr must lie between.*From t = 2 on it is nan",
        ),
        (lambda: schedules.sohl_dickstein(5, beta_1=-1.0), "beta_1=-1.0"),
        (lambda: schedules.sohl_dickstein(5, beta_1=1.0), "beta_1=1.0"),
        (lambda: schedules.Learned(1, beta_1=0.1), "num_steps=1 must be a whole number, 2 or more"),
        (lambda: schedules.Learned(5, beta_1=0.0), "beta_1=0.0 must lie between 0 and 1"),
        (lambda: schedules.Learned(5, beta_1=0.9, noise_to_signal=0.1), "noise_to_signal=0.1 is"),
        (lambda: schedules.Learned(5, beta_1=0.1, noise_to_signal=-1.0), "noise_to_signal=-1.0"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
