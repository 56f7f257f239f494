"""Pictures of what other rooms computed: each function draws one thing, and returns where.

All take `ax` (or `axes`) and make a figure if they get none; none changes matplotlib's settings,
and none computes more than a picture needs. Needs matplotlib (`pip install diffppl[plots]`), which
is imported with the first picture.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import Calibration
from .checks.arguments import check_instance, check_size
from .checks.arrays import as_numbers
from .fitting.losses import ELBOLoss
from .fitting.result import History
from .likelihood.elbo import Bound
from .likelihood.path_weights import PathWork
from .schedules import AbstractSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAINT, _STRONG, _ACCENT = "#c9d3e0", "#2f4b7c", "#d1495b"


def history(history: History, *, ax: "Axes | None" = None) -> "Axes":
    """The loss of each iteration, its running mean, and the validations.

    Validations are minus the ELBO, so that they lie on the curve of an `ELBOLoss`; beside another
    loss they have an axis of their own on the right.
    """
    loss = check_instance("history", history, History).loss
    if not loss.size:
        raise ValueError("history is empty: no iteration was made.")
    ax = _axes(ax)
    steps = np.arange(1, loss.size + 1)
    window = max(loss.size // 30, 1)
    totals = np.cumsum(np.insert(loss, 0, 0.0))
    mean = (totals[window:] - totals[:-window]) / window
    few = slice(None, None, max(loss.size // 3000, 1))  # more dots would only fill the picture
    ax.plot(steps[few], loss[few], ".", color=_FAINT, markersize=2, label="minibatch")
    ax.plot(steps[window - 1 :], mean, color=_STRONG, label=f"mean of {window}")
    shown = mean
    if history.validation_elbo.size:
        is_elbo = history.label == ELBOLoss().label
        right = ax if is_elbo else ax.twinx()
        points = (history.validation_iterations, -history.validation_elbo)
        right.plot(*points, "o-", color=_ACCENT, markersize=3, label="validation")
        if is_elbo:
            shown = np.concatenate([mean, points[1]])
        else:
            right.set_ylabel("validation: negative ELBO (nats per event)", color=_ACCENT)
    low, high = np.quantile(shown, [0.0, 0.98])  # the first losses would flatten the rest
    margin = 0.4 * max(high - low, 1e-6)
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlabel("iteration")
    ax.set_ylabel(history.label)
    ax.legend(frameon=False, markerscale=3)
    return _plain(ax)


def bound_terms(bound: Bound, *, ax: "Axes | None" = None) -> "Axes":
    """What each reverse step costs: its divergence, in nats, from t = 2 to T.

    The two ends of the chain are written beside it: E log p(x_0 given x_1), which is fixed by
    beta_1, and the divergence of the last level from the base.
    """
    check_instance("bound", bound, Bound, remedy=", as elbo returns it")
    ax = _axes(ax)
    terms = np.asarray(bound.terms)
    times = np.arange(2, terms.size + 1)
    ax.plot(times, -terms[1:], color=_STRONG)
    ax.fill_between(times, -terms[1:], color=_FAINT, linewidth=0)
    ax.axhline(0.0, color="black", linewidth=0.8)
    words = [
        f"ELBO {float(bound.value):.3f} nats",
        f"  last step, t = 1: {terms[0]:.3f}",
        f"  steps t = 2..{terms.size}: {terms[1:].sum():.3f}",
        f"  end of the chain: {float(bound.prior):z.3f}",
    ]
    ax.set_ylim(top=1.5 * ax.get_ylim()[1])  # room for the words
    ax.text(0.98, 0.97, "\n".join(words), transform=ax.transAxes, ha="right", va="top")
    ax.set_xlabel("step t")
    ax.set_ylabel("divergence (nats per event)")
    return _plain(ax)


def schedule(
    schedules: AbstractSchedule | Mapping[str, AbstractSchedule], *, ax: "Axes | None" = None
) -> "Axes":
    """Noise levels: the ratio of noise to signal amplitude, against t / T.

    Even spacing on this scale is even work for every step. The dashed line is where noise and
    signal are equal; a level without signal cannot be drawn.
    """
    if not isinstance(schedules, Mapping):
        remedy = ", or a dictionary of them by name"
        check_instance("schedules", schedules, AbstractSchedule, remedy=remedy)
        schedules = {type(schedules).__name__: schedules}
    for each in schedules.values():
        check_instance("schedules", each, AbstractSchedule)
    ax = _axes(ax)
    for name, each in schedules.items():
        log_snr = np.asarray(each.log_snr())[1:]
        times = np.arange(1, log_snr.size + 1) / log_snr.size
        ratio = np.exp(-0.5 * np.where(np.isfinite(log_snr), log_snr, np.nan))
        ax.plot(times, ratio, ".-", markersize=3, linewidth=1, label=f"{name}, T = {log_snr.size}")
    ax.axhline(1.0, color="black", linestyle="--", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_xlabel("t / T")
    ax.set_ylabel("noise / signal")
    ax.legend(frameon=False)
    return _plain(ax)


def events(
    x: Any, *, columns: int | None = None, limits: Any = None, ax: "Axes | None" = None
) -> "Axes":
    """A picture of each datum: images in a grid, or sequences as rows.

    Args:
        x: shape `(n, length)`, `(n, height, width)`, or with channels (1 or 3, first or last).
        columns: pictures in a row of the grid; about as many as rows if None.
        limits: the values that are black and white; the extremes of `x` if None.
        ax: where to draw.
    """
    x = np.asarray(as_numbers("x", x), np.float64)
    if x.ndim not in (2, 3, 4) or x.shape[0] == 0:
        raise ValueError(
            f"x has shape {x.shape}; it needs (n, length), (n, height, width) or, with channels, "
            "(n, height, width, channels) or (n, channels, height, width)."
        )
    ax = _axes(ax)
    low, high = (x.min(), x.max()) if limits is None else limits
    x = np.clip((x - low) / max(high - low, 1e-12), 0, 1)
    if x.ndim == 2:
        ax.imshow(x, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set_xlabel("position")
        ax.set_ylabel("datum")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(_pyplot().MaxNLocator(integer=True))
        return ax
    if x.ndim == 4 and x.shape[-1] not in (1, 3):
        x = np.moveaxis(x, 1, -1)
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[-1] not in (1, 3):
        raise ValueError(f"x has {x.shape[-1]} channels; a picture has 1 or 3.")
    n, height, width, channels = x.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else check_size("columns", columns)
    rows = math.ceil(n / columns)
    gap = max(1, min(height, width) // 16)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for i, picture in enumerate(x):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    # Grey values go through a colour map, colours do not.
    sheet = sheet[..., 0] if channels == 1 else sheet
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def chain(
    panels: Mapping[int, Any], *, label: str = "", limit: float | None = None, axes: Any = None
) -> np.ndarray:
    """A cloud of points at several steps of a chain, side by side (figure 1 of the paper).

    Args:
        panels: t -> points, shape `(n, 2)`, in the order of the panels.
        label: what stands beside the first panel.
        limit: axes run from `-limit` to `limit`; so that every point is seen if None.
        axes: as many as there are panels.

    Example:
        >>> path = dp.sample_path(jax.random.key(0), model, (1_000,))    # x_T first, x_0 last
        >>> dp.plots.chain({0: path[-1], 20: path[-21], 40: path[-41]}, label="reverse")
    """
    check_instance("panels", panels, Mapping, remedy=": a dictionary, t -> points")
    clouds = {t: np.asarray(as_numbers(f"panels[{t}]", x)) for t, x in panels.items()}
    for t, points in clouds.items():
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"panels[{t}] has shape {points.shape}; it needs shape (n, 2).")
    if not clouds:
        raise ValueError("panels is empty.")
    if axes is None:
        size = (2.6 * len(clouds), 2.8)
        axes = _pyplot().subplots(1, len(clouds), figsize=size, squeeze=False)[1][0]
    axes = np.atleast_1d(axes)
    if len(axes) != len(clouds):
        raise ValueError(f"there are {len(axes)} axes for {len(clouds)} panels.")
    reach = 1.05 * max(np.abs(points).max() for points in clouds.values())
    ends = (-reach, reach) if limit is None else (-limit, limit)
    for ax, (t, points) in zip(axes, clouds.items(), strict=True):
        size = np.clip(3000 / len(points), 0.5, 12)
        ax.scatter(*points.T, s=size, color=_STRONG, alpha=0.5, linewidths=0)
        ax.set(xlim=ends, ylim=ends, aspect="equal", title=f"t = {t}")
        _plain(ax)
    axes[0].set_ylabel(label)
    return axes


def work(result: PathWork, *, ax: "Axes | None" = None) -> "Axes":
    """How much work each path wastes, in nats: W + log p(x_0), over all paths of all data.

    By Jarzynski the mean of exp(-W) is p(x_0), so that the paths left of zero are what the others
    pay for; the mean, which is never below zero, is what the ELBO loses.

    Args:
        result: from `jarzynski`.
        ax: where to draw.
    """
    check_instance("result", result, PathWork, remedy=", as jarzynski returns it")
    log_p = np.asarray(result.log_likelihood.per_example)
    wasted = (np.asarray(result.work) + log_p[:, None]).ravel()
    lost = float(np.mean(np.asarray(result.dissipation)))
    ax = _axes(ax)
    heights, *_ = ax.hist(wasted, bins="auto", color=_FAINT, edgecolor="white", linewidth=0.3)
    ax.axvline(0.0, ymax=0.75, color=_ACCENT, label="-log p(x_0), by the mean of exp(-W)")
    ax.axvline(lost, ymax=0.75, color=_STRONG, label=f"mean work, -ELBO: {lost:.3f} nats more")
    ax.set_xlabel("work of a path, less -log p(x_0) (nats)")
    ax.set_ylabel("paths")
    ax.set_ylim(top=1.4 * np.max(heights))  # room for the words
    ax.legend(frameon=False, loc="upper left")
    return _plain(ax)


def calibration(result: Calibration, *, axes: Any = None) -> np.ndarray:
    """How far the ranks of each quantity are from uniform, and the band of what chance does.

    Each line is the ECDF of the ranks of one coordinate, less what it should be. In 95 of 100
    calibrated quantities it stays inside the band everywhere. A posterior too narrow rises first
    and falls below at last, one too wide the other way round; a bias stays on one side.

    Args:
        result: from `calibrate`.
        axes: as many as there are quantities.
    """
    check_instance("result", result, Calibration, remedy=", as calibrate returns it")
    lines, band = result.ecdf_difference(), result.band()
    if axes is None:
        columns = min(len(lines), 4)
        rows = math.ceil(len(lines) / columns)
        size = (2.9 * columns, 2.5 * rows)
        axes = _pyplot().subplots(
            rows, columns, figsize=size, sharex=True, squeeze=False, layout="constrained"
        )[1]
        for empty in axes.ravel()[len(lines) :]:
            empty.set_axis_off()
        axes = axes.ravel()[: len(lines)]
    axes = np.atleast_1d(axes)
    if len(axes) != len(lines):
        raise ValueError(f"there are {len(axes)} axes for {len(lines)} quantities.")
    for ax, (name, line) in zip(axes, lines.items(), strict=True):
        ax.fill_between(band.position, band.lower, band.upper, color=_FAINT, linewidth=0)
        ax.plot(band.position, line.reshape(-1, band.position.size).T, color=_STRONG, linewidth=1)
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(title=name, xlabel="rank / number of draws")
        _plain(ax)
    axes[0].set_ylabel("ECDF less uniform")
    return axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "diffppl.plots needs matplotlib: pip install diffppl[plots], or pip install matplotlib."
        ) from error
    return plt


def _axes(ax: "Axes | None") -> "Axes":
    return _pyplot().subplots(figsize=(5.5, 3.6), layout="constrained")[1] if ax is None else ax


def _plain(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)  # pyright: ignore[reportCallIssue]
    return ax
