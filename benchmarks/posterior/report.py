"""The table and the figure of the results."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

Rows = list[dict[str, Any]]

# MCGdiff (Cardoso et al. 2024; 1,000 particles twice, 20 and 100 steps) and DPS (Chung et al. 2023;
# 100 steps), reimplemented and measured on 20 other problems of each cell: sliced W1 with the 95 %
# half-interval, and, at 100 steps, the mean ratio to the floor.
PUBLISHED = {
    "mixture 8/1": ("1.87 ± 0.76", "0.82 ± 0.30 (6.4)", "4.56 ± 1.55 (30.8)"),
    "mixture 8/2": ("0.87 ± 0.29", "0.58 ± 0.24 (7.1)", "2.55 ± 0.80 (33.3)"),
    "mixture 8/4": ("0.37 ± 0.10", "0.24 ± 0.05 (5.8)", "1.45 ± 0.89 (38.6)"),
    "mixture 80/1": ("2.33 ± 0.83", "1.01 ± 0.38 (5.6)", "4.52 ± 0.80 (31.2)"),
    "mixture 80/2": ("1.39 ± 0.61", "0.75 ± 0.37 (9.4)", "5.40 ± 1.11 (68.0)"),
    "mixture 80/4": ("0.56 ± 0.20", "0.42 ± 0.15 (8.8)", "3.50 ± 0.94 (76.9)"),
    "mixture 800/1": ("2.41 ± 0.77", "2.20 ± 0.95 (16.4)", "7.16 ± 1.42 (54.4)"),
    "mixture 800/2": ("2.52 ± 1.08", "1.91 ± 0.91 (20.6)", "8.24 ± 1.15 (90.8)"),
    "mixture 800/4": ("0.47 ± 0.17", "0.44 ± 0.24 (9.1)", "7.66 ± 1.02 (153.8)"),
}
HEAD = ["problem", "method", "of", "n", "distance", "floor", "ratio", "evidence: mean", "size"]
HEAD += ["calls", "seconds"]
WORST = 300.0  # largest ratio to the floor in the figure
HEAD_PUBLISHED = ["MCGdiff, 20 steps", "MCGdiff, 100 steps", "DPS, 100 steps"]


def groups(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Group rows by cell and method, in the order of first appearance of the cells."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        found.setdefault((row["cell"], row["method"]), []).append(row)
    cells = list(dict.fromkeys(cell for cell, _ in found))
    return {key: found[key] for cell in cells for key in found if key[0] == cell}


def of(rows: Rows, *path: str) -> np.ndarray:
    """Return one number of every row, by its path of keys."""
    values: list[Any] = rows
    for name in path:
        values = [value[name] for value in values]
    return np.array(values, dtype=float)


def ratios(rows: Rows, name: str) -> np.ndarray:
    """Return the ratio of distance to floor for each problem."""
    return of(rows, "distance", name) / of(rows, "floor", name)


def mean_and_interval(values: np.ndarray) -> str:
    """Format the mean and the 95 % half-interval, as in the published tables."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {1.96 * values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def table(rows: Rows) -> list[list[str]]:
    """Return the rows of the table, header first."""
    published = any(cell in PUBLISHED for cell, _ in groups(rows))
    lines = [HEAD + HEAD_PUBLISHED if published else HEAD]
    shown = set()
    for (cell, method), some in groups(rows).items():
        error = of(some, "evidence_error")
        for place, name in enumerate(some[0]["distance"]):
            line = [cell, method, name, str(len(some))]
            line.append(mean_and_interval(of(some, "distance", name)))
            line += [f"{of(some, 'floor', name).mean():.3f}", f"{ratios(some, name).mean():.2f}"]
            if place == 0:
                numbers = [(error.mean(), "+.3f"), (np.abs(error).mean(), ".3f")]
                numbers.append((of(some, "denoiser_calls").mean(), ".2g"))
                line += ["" if np.isnan(x) else format(x, form) for x, form in numbers]
                line.append(f"{np.median(of(some, 'seconds')):.1f}")
                line += PUBLISHED.get(cell, ()) if cell not in shown else ()
                shown.add(cell)
            lines.append(line + [""] * (len(lines[0]) - len(line)))
    return lines


def overall(rows: Rows) -> list[str]:
    """Return geometric means over cells of the ratio to the floor, by group and method."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for (_, method), some in groups(rows).items():
        for name in some[0]["distance"]:
            key = (some[0]["group"], method, name)
            found.setdefault(key, []).append(float(ratios(some, name).mean()))
    return [
        f"{group}, {method}, {name}: ratio to the floor {np.exp(np.mean(np.log(each))):.2f} in the "
        f"geometric mean over {len(each)} cells, {max(each):.2f} in the worst"
        for (group, method, name), each in found.items()
    ]


def as_text(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(rows: Rows) -> plt.Figure:
    """Plot accuracy against denoiser calls, one panel per group of problems.

    Small points are cells, large ones their geometric mean. Methods without a count of denoiser
    calls are in the table only; draws that are not finite are plotted at the largest ratio.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles = {
        method: {"color": plt.get_cmap("tab20")(i % 20), "marker": "osD^vP"[i % 6]}
        for i, method in enumerate(methods)
    }
    found = by_group(rows)
    kinds = list(dict.fromkeys(group for group, _ in found))
    drawn, axes = plt.subplots(
        1, len(kinds), figsize=(3 + 2.3 * len(kinds), 5), sharey=True, squeeze=False
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set(title=kind, xlabel="denoiser calls", xscale="log", yscale="log")
        axis.axhline(1, color="0.5", linewidth=1)
        for method, style in styles.items():
            points = [
                (of(some, "denoiser_calls").mean(), ratios(some, name).mean())
                for some in found.get((kind, method), ())
                for name in some[0]["distance"]
            ]
            points = np.array([point for point in points if np.isfinite(point[0])])
            if points.size:
                shown = np.clip(np.nan_to_num(points, nan=WORST), None, [np.inf, WORST])
                axis.scatter(*shown.T, s=10, alpha=0.5, **style)
                axis.scatter(*np.exp(np.log(shown).mean(axis=0)), s=70, edgecolor="k", **style)
    axes[0, 0].set(ylabel="distance over that of exact draws", ylim=(0.3, 1.5 * WORST))
    handles = [
        plt.Line2D([], [], linestyle="", markeredgecolor="k", label=method, **style)
        for method, style in styles.items()
    ]
    drawn.tight_layout(rect=(0, 0, 1 - 2.2 / drawn.get_figwidth(), 1))
    drawn.legend(handles=handles, loc="center right", fontsize=8)
    return drawn


def by_group(rows: Rows) -> dict[tuple[str, str], list[Rows]]:
    """Group the cells by group of problems and method."""
    found: dict[tuple[str, str], list[Rows]] = {}
    for (_, method), some in groups(rows).items():
        found.setdefault((some[0]["group"], method), []).append(some)
    return found
