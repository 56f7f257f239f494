"""Figures of results: each function draws one plot and returns its axes.

Every function takes `ax` (or `axes`) and creates a figure if it is None. None of them changes the
settings of matplotlib, or computes more than the plot requires. Requires matplotlib
(`pip install diffppl[plots]`), which is imported on first use.
"""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .calibration import Calibration
from .checks.arguments import check_instance, check_size
from .checks.arrays import Numbers, as_numbers
from .fitting.losses import ELBOLoss
from .fitting.result import History
from .likelihood.estimate import Estimate
from .likelihood.path_weights import PathWork
from .schedules import AbstractSchedule

__all__ = ["bound_terms", "calibration", "chain", "events", "history", "schedule", "work"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Panels = Axes | Sequence[Axes] | np.ndarray | None

Clouds = Mapping[int, Numbers]
Limits = tuple[int | float, int | float] | None
_FAINT, _STRONG, _ACCENT = "#c9d3e0", "#2f4b7c", "#d1495b"


def history(history: History, *, ax: "Axes | None" = None) -> "Axes":
    """Plot the loss of each iteration, its running mean, and the validation losses.

    Validation losses are negative ELBOs: they share the axis of an `ELBOLoss`, and have a second
    axis on the right for any other loss.
    """
    loss = check_instance("history", history, History).loss
    if not loss.size:
        raise ValueError("history is empty: no iteration was made.")
    ax = _axes(ax)
    steps = np.arange(1, loss.size + 1)
    window = max(loss.size // 30, 1)
    totals = np.cumsum(np.insert(loss, 0, 0.0))
    mean = (totals[window:] - totals[:-window]) / window
    subset = slice(None, None, max(loss.size // 3000, 1))  # at most a few thousand dots
    ax.plot(steps[subset], loss[subset], ".", color=_FAINT, markersize=2, label="minibatch")
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
    low, high = np.quantile(shown, [0.0, 0.98])  # the initial losses exceed all others by far
    margin = 0.4 * max(high - low, 1e-6)
    ax.set(xlabel="iteration", ylabel=history.label, ylim=(low - margin, high + margin))
    ax.legend(frameon=False, markerscale=3)
    return _despine(ax)


def bound_terms(bound: Estimate, *, ax: "Axes | None" = None) -> "Axes":
    """Plot the divergence of each reverse step t = 2..T, in nats.

    The reconstruction term E log p(x_0 | x_1), which beta_1 determines, and the prior term
    -KL(q(x_T | x_0), pi) are written as text.
    """
    check_instance("bound", bound, Estimate, remedy=", as elbo returns it")
    if bound.terms is None or bound.prior is None:
        raise ValueError(f"bound={bound} has no terms per step; pass the result of elbo.")
    ax = _axes(ax)
    terms = np.asarray(bound.terms)
    times = np.arange(2, terms.size + 1)
    ax.plot(times, -terms[1:], color=_STRONG)
    ax.fill_between(times, -terms[1:], color=_FAINT, linewidth=0)
    ax.axhline(0.0, color="black", linewidth=0.8)
    summary = [
        f"ELBO {float(bound.value):.3f} nats",
        f"  reconstruction, t = 1: {terms[0]:.3f}",
        f"  steps t = 2..{terms.size}: {terms[1:].sum():.3f}",
        f"  prior term: {float(bound.prior):z.3f}",
    ]
    ax.set_ylim(top=1.5 * ax.get_ylim()[1])  # room for the text
    ax.text(0.98, 0.97, "\n".join(summary), transform=ax.transAxes, ha="right", va="top")
    ax.set(xlabel="step t", ylabel="divergence (nats per event)")
    return _despine(ax)


def schedule(
    schedules: AbstractSchedule | Mapping[str, AbstractSchedule], *, ax: "Axes | None" = None
) -> "Axes":
    """Plot the noise levels: the ratio of noise to signal amplitude against t / T.

    On this logarithmic scale equal spacing is equal work per step. The dashed line marks equal
    noise and signal; a level without signal is not drawn.
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
        # log SNR is that of the powers; the ratio of the amplitudes is its square root.
        ratio = np.exp(-0.5 * np.where(np.isfinite(log_snr), log_snr, np.nan))
        ax.plot(times, ratio, ".-", markersize=3, linewidth=1, label=f"{name}, T = {log_snr.size}")
    ax.axhline(1.0, color="black", linestyle="--", linewidth=0.8)
    ax.set(xlabel="t / T", ylabel="noise / signal", yscale="log")
    ax.legend(frameon=False)
    return _despine(ax)


def events(
    x: Numbers, *, columns: int | None = None, limits: Limits = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw data: images in a grid, or sequences as rows.

    Args:
        x: shape `(n, length)`, `(n, height, width)`, or with channels (1 or 3, first or last).
        columns: images per row of the grid; a square grid if None.
        limits: values of black and white; the minimum and maximum of `x` if None.
        ax: axes to draw on; a new figure if None.

    Raises:
        ValueError: a shape of another rank, no data, or a number of channels other than 1 and 3.
    """
    images = np.asarray(as_numbers("x", x), np.float64)
    if images.ndim not in (2, 3, 4) or images.shape[0] == 0:
        raise ValueError(
            f"x has shape {images.shape}; it needs (n, length), (n, height, width) or, with "
            "channels, (n, height, width, channels) or (n, channels, height, width)."
        )
    ax = _axes(ax)
    low, high = (images.min(), images.max()) if limits is None else limits
    images = np.clip((images - low) / max(high - low, 1e-12), 0, 1)
    style = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    if images.ndim == 2:
        ax.imshow(images, aspect="auto", **style)
        ax.set(xlabel="position", ylabel="datum")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(_pyplot().MaxNLocator(integer=True))
        return ax
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        images = np.moveaxis(images, 1, -1)
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"x has {images.shape[-1]} channels; an image has 1 or 3.")
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else check_size("columns", columns)
    rows = math.ceil(n / columns)
    gap = max(1, min(height, width) // 16)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    # imshow applies the colour map to arrays without a channel axis only.
    ax.imshow(sheet[..., 0] if channels == 1 else sheet, **style)
    ax.set_axis_off()
    return ax


def chain(
    panels: Clouds, *, label: str = "", limit: float | None = None, axes: "Panels" = None
) -> np.ndarray:
    """Draw points at several steps of a chain, side by side (figure 1 of the paper).

    Args:
        panels: t -> points, shape `(n, 2)`, in the order of the panels.
        label: label of the first panel's y-axis.
        limit: axes range from `-limit` to `limit`; large enough for every point if None.
        axes: one for each panel; a new figure if None.

    Raises:
        ValueError: no panels, points of another shape, or a wrong number of axes.

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
    each = _check_axes(axes, len(clouds), "panels")
    if limit is None:
        limit = 1.05 * float(max(np.abs(points).max() for points in clouds.values()))
    ends = (-limit, limit)
    for ax, (t, points) in zip(each, clouds.items(), strict=True):
        size = np.clip(3000 / len(points), 0.5, 12)
        ax.scatter(*points.T, s=size, color=_STRONG, alpha=0.5, linewidths=0)
        ax.set(xlim=ends, ylim=ends, aspect="equal", title=f"t = {t}")
        _despine(ax)
    each[0].set_ylabel(label)
    return each


def work(result: PathWork, *, ax: "Axes | None" = None) -> "Axes":
    """Plot the histogram of the dissipated work W + log p(x_0), in nats, of all trajectories.

    By the Jarzynski equality exp(-W) has mean p(x_0), so trajectories below zero compensate those
    above. The mean of the histogram is never negative; it is the gap of the ELBO.

    Args:
        result: from `jarzynski`.
        ax: axes to draw on; a new figure if None.
    """
    check_instance("result", result, PathWork, remedy=", as jarzynski returns it")
    log_p = np.asarray(result.log_likelihood.per_example)
    dissipated = (np.asarray(result.work) + log_p[:, None]).ravel()
    mean = float(np.mean(np.asarray(result.dissipation)))
    ax = _axes(ax)
    heights, *_ = ax.hist(dissipated, bins="auto", color=_FAINT, edgecolor="white", linewidth=0.3)
    ax.axvline(0.0, ymax=0.75, color=_ACCENT, label="-log p(x_0), by the mean of exp(-W)")
    ax.axvline(mean, ymax=0.75, color=_STRONG, label=f"mean work, -ELBO: {mean:.3f} nats more")
    ax.set(xlabel="dissipated work, W + log p(x_0) (nats)", ylabel="trajectories")
    ax.set_ylim(top=1.4 * np.max(heights))  # room for the legend
    ax.legend(frameon=False, loc="upper left")
    return _despine(ax)


def calibration(result: Calibration, *, axes: "Panels" = None) -> np.ndarray:
    """Plot the ECDF of the ranks minus the uniform CDF, with its simultaneous 95 % band.

    Each line is one coordinate of a quantity. A calibrated coordinate stays inside the band
    everywhere with probability 0.95. For a posterior that is too narrow the difference is positive
    at small and negative at large ranks, for one that is too wide the reverse; a bias has one sign.

    Args:
        result: from `calibrate`.
        axes: one for each quantity; a new figure if None.

    Raises:
        ValueError: a wrong number of axes.
    """
    check_instance("result", result, Calibration, remedy=", as calibrate returns it")
    lines, band = result.ecdf_difference(), result.band()
    if axes is None:
        columns = min(len(lines), 4)
        rows = math.ceil(len(lines) / columns)
        size = (2.9 * columns, 2.5 * rows)
        options = {"sharex": True, "squeeze": False, "layout": "constrained"}
        grid = _pyplot().subplots(rows, columns, figsize=size, **options)[1].ravel()
        for empty in grid[len(lines) :]:
            empty.set_axis_off()
        axes = grid[: len(lines)]
    each = _check_axes(axes, len(lines), "quantities")
    for ax, (name, line) in zip(each, lines.items(), strict=True):
        ax.fill_between(band.position, band.lower, band.upper, color=_FAINT, linewidth=0)
        ax.plot(band.position, line.reshape(-1, band.position.size).T, color=_STRONG, linewidth=1)
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(title=name, xlabel="rank / number of draws")
        _despine(ax)
    each[0].set_ylabel("ECDF minus uniform")
    return each


def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "diffppl.plots needs matplotlib: pip install diffppl[plots], or pip install matplotlib."
        ) from error
    return plt


def _axes(ax: "Axes | None") -> "Axes":
    return _pyplot().subplots(figsize=(5.5, 3.6), layout="constrained")[1] if ax is None else ax


def _check_axes(axes: "Panels", num: int, what: str) -> np.ndarray:
    each = np.atleast_1d(np.asarray(axes))
    if len(each) != num:
        raise ValueError(f"there are {len(each)} axes for {num} {what}.")
    return each


def _despine(ax: "Axes") -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)  # pyright: ignore[reportCallIssue]
    return ax
