import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import diffppl as dp
from diffppl.fitting.losses import ELBOLoss, SimpleLoss
from diffppl.fitting.result import History

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No picture changes matplotlib's settings, and none is left open."""
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


def lines(ax: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label -> x and y of a line."""
    return {line.get_label(): line.get_data() for line in ax.get_lines()}


def make_history(loss: Any) -> History:
    return History(loss.label, 5 + RNG.normal(size=200), [100, 200], [-6.0, -5.5])


def test_history_of_an_elbo_has_the_validations_on_its_curve():
    history = make_history(ELBOLoss())
    ax = dp.plots.history(history)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["minibatch"], [np.arange(1, 201), history.loss])
    np.testing.assert_array_equal(drawn["validation"], [[100, 200], [6.0, 5.5]])
    x, y = drawn["mean of 6"]
    np.testing.assert_allclose(y[10], history.loss[10:16].mean())
    assert x[10] == 16
    assert ax.get_ylabel() == "negative ELBO (nats per event)"
    assert ax.get_ylim()[0] < 5.5 < 6.0 < ax.get_ylim()[1]


def test_history_of_another_loss_has_an_axis_for_its_validations():
    ax = dp.plots.history(make_history(SimpleLoss()))
    assert "validation" not in lines(ax)
    right = next(other for other in ax.figure.axes if other is not ax)
    np.testing.assert_array_equal(lines(right)["validation"][1], [6.0, 5.5])
    assert "negative ELBO" in right.get_ylabel()


def test_history_of_one_iteration_or_a_flat_one():
    dp.plots.history(History("loss", [1.0]))
    dp.plots.history(History("loss", np.ones(500)))
    with pytest.raises(ValueError, match="history is empty"):
        dp.plots.history(History("loss"))


def test_bound_terms():
    terms = np.array([1.0, -0.5, -0.25, -0.125])
    values, prior = jnp.full(3, 0.1), jnp.array(-0.025)
    bound = dp.Estimate(values, jnp.full(3, jnp.nan), prior, jnp.asarray(terms))
    ax = dp.plots.bound_terms(bound)
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_array_equal(x, [2, 3, 4])
    np.testing.assert_array_equal(y, [0.5, 0.25, 0.125])
    words = ax.texts[0].get_text()
    for part in ("ELBO 0.100", "t = 1: 1.000", "t = 2..4: -0.875", "prior term: -0.025"):
        assert part in words
    with pytest.raises(ValueError, match="has no terms per step; pass the result of elbo"):
        dp.plots.bound_terms(dp.Estimate(jnp.zeros(2), jnp.zeros(2)))


def test_schedules():
    reciprocal = dp.schedules.reciprocal(4)
    ax = dp.plots.schedule({"a": dp.schedules.linear(10), "b": reciprocal})
    x, y = lines(ax)["b, T = 4"]
    np.testing.assert_array_equal(x, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(y[:3], np.sqrt([1 / 3, 1.0, 3.0]), rtol=1e-6)
    assert np.isnan(y[3])  # no signal is left
    assert ax.get_yscale() == "log"
    assert "Schedule, T = 5" in lines(dp.plots.schedule(dp.schedules.cosine(5)))


def test_images_stand_in_a_grid():
    x = RNG.uniform(size=(5, 4, 6))
    x[0, 0, 0], x[1, 0, 0] = -1.0, 3.0
    ax = dp.plots.events(x, columns=3)
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 5 - 1, 3 * 7 - 1)
    np.testing.assert_allclose(sheet[5:, 7:13], (x[4] + 1) / 4)
    assert np.all(sheet[4] == 1)
    clipped = dp.plots.events(x, limits=(0, 1)).images[0].get_array()
    assert clipped.min() == 0
    assert clipped.max() == 1


def test_channels_may_come_first_or_last():
    x = RNG.uniform(size=(4, 8, 8, 3))
    last = dp.plots.events(x).images[0].get_array()
    first = dp.plots.events(np.moveaxis(x, -1, 1)).images[0].get_array()
    np.testing.assert_array_equal(first, last)
    assert last.shape == (17, 17, 3)
    grey = dp.plots.events(x[..., :1]).images[0].get_array()
    np.testing.assert_array_equal(grey, dp.plots.events(x[..., 0]).images[0].get_array())


def test_sequences_are_rows():
    x = RNG.integers(0, 2, size=(7, 20))
    np.testing.assert_array_equal(dp.plots.events(x).images[0].get_array(), x)
    np.testing.assert_array_equal(dp.plots.events(np.ones((2, 3))).images[0].get_array(), 0)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 2, 2, 2)])
def test_events_refuse_other_shapes(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="x has shape"):
        dp.plots.events(np.zeros(shape))
    with pytest.raises(ValueError, match="x has 5 channels"):
        dp.plots.events(np.zeros((2, 5, 4, 5)))


def test_chain():
    panels = {t: jnp.asarray(RNG.normal(size=(50, 2))) for t in (0, 20, 40)}
    axes = dp.plots.chain(panels, label="forward")
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 20", "t = 40"]
    for ax, points in zip(axes, panels.values(), strict=True):
        np.testing.assert_allclose(ax.collections[0].get_offsets(), points)
        assert ax.get_xlim() == ax.get_ylim() == axes[0].get_xlim()
        assert ax.get_xlim()[1] > np.abs(points).max()
    assert axes[0].get_ylabel() == "forward"
    figure, grid = plt.subplots(2, 3)
    assert dp.plots.chain(panels, axes=grid[1], limit=2.0)[0] is grid[1, 0]
    assert grid[1, 0].get_xlim() == (-2.0, 2.0)
    with pytest.raises(ValueError, match="there are 6 axes for 3 panels"):
        dp.plots.chain(panels, axes=grid.ravel())
    with pytest.raises(ValueError, match=r"panels\[7\] has shape \(5, 3\)"):
        dp.plots.chain({7: np.zeros((5, 3))})
    with pytest.raises(ValueError, match="panels is empty"):
        dp.plots.chain({})


def test_work():
    """W ~ N(m, s^2) wastes s^2 / 2 nats, and exp(-W) has the mean exp(s^2 / 2 - m)."""
    work = dp.PathWork(jnp.asarray(5 + 0.8 * RNG.normal(size=(3, 4000)), dtype=float))
    ax = dp.plots.work(work)
    assert sum(patch.get_height() for patch in ax.patches) == 12_000
    zero, mean = (line.get_xdata()[0] for line in ax.get_lines())
    assert zero == 0
    np.testing.assert_allclose(mean, 0.32, atol=0.05)
    centres = [patch.get_x() + patch.get_width() / 2 for patch in ax.patches]
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(np.average(centres, weights=heights), mean, atol=0.05)


def test_calibration():
    """One panel for each quantity, one line for each coordinate, and the band behind them."""
    ranks = {"x": RNG.integers(0, 21, size=(200, 3)), "sigma": np.zeros(200, int)}
    result = dp.Calibration(ranks, 20, "TwistedSMC")
    axes = dp.plots.calibration(result)
    assert [ax.get_title() for ax in axes] == ["x", "sigma"]
    drawn = [[line.get_ydata() for line in ax.get_lines()[:-1]] for ax in axes]  # but zero
    np.testing.assert_allclose(drawn[0], result.ecdf_difference()["x"])
    np.testing.assert_allclose(drawn[1], [np.arange(20, 0, -1) / 21])
    band = result.band()
    for ax in axes:
        corners = ax.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(corners[:, 1].min(), band.lower.min())
        np.testing.assert_allclose(corners[:, 1].max(), band.upper.max())
    assert np.all(drawn[1][0][:-1] > band.upper[:-1])
    grid = plt.subplots(2, 2)[1]
    assert dp.plots.calibration(result, axes=grid[0])[1] is grid[0, 1]
    with pytest.raises(ValueError, match="there are 4 axes for 2 quantities"):
        dp.plots.calibration(result, axes=grid.ravel())


def test_pictures_are_drawn_where_they_are_told():
    ax = plt.subplots()[1]
    bound = dp.Estimate(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.zeros(3))
    for draw in (
        lambda: dp.plots.history(make_history(ELBOLoss()), ax=ax),
        lambda: dp.plots.bound_terms(bound, ax=ax),
        lambda: dp.plots.schedule(dp.schedules.linear(3), ax=ax),
        lambda: dp.plots.events(np.eye(3), ax=ax),
        lambda: dp.plots.work(dp.PathWork(jnp.arange(8.0).reshape(2, 4)), ax=ax),
    ):
        assert draw() is ax
    assert plt.get_fignums() == [ax.figure.number]


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install diffppl\[plots\]"):
        dp.plots.schedule(dp.schedules.linear(3))
