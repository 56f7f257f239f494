"""The table and the figure."""

import math
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

Rows = list[dict[str, Any]]

# MCGdiff (Cardoso et al. 2024; 1,000 particles twice, 20 and 100 steps) and DPS (Chung et al. 2023;
# 100 steps) written anew and measured on 20 other problems of each cell: sliced W1 and its 95 %
# half-interval, then, at 100 steps, the mean ratio to the floor.
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
HEAD_PUBLISHED = ["MCGdiff, 20 steps", "MCGdiff, 100 steps", "DPS, 100 steps"]


def groups(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Rows of each cell and method, in the order of first appearance by cell."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        found.setdefault((row["cell"], row["method"]), []).append(row)
    cells = list(dict.fromkeys(cell for cell, _ in found))
    return {key: found[key] for cell in cells for key in found if key[0] == cell}


def of(rows: Rows, *path: str) -> np.ndarray:
    """One number of every row."""
    values: list[Any] = rows
    for name in path:
        values = [value[name] for value in values]
    return np.array(values, dtype=float)


def ratios(rows: Rows, name: str) -> np.ndarray:
    """Distance over floor, problem by problem."""
    return of(rows, "distance", name) / of(rows, "floor", name)


def mean_and_interval(values: np.ndarray) -> str:
    """Mean and 95 % half-interval, as the published tables have it."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {1.96 * values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def table(rows: Rows) -> list[list[str]]:
    """The cells of the table, its head first."""
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
    """Geometric means over cells of the ratio to the floor, by group and method."""
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
    """Accuracy against cost: a small point for each cell, a large one for each group."""
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(row["group"] for row in rows))
    costs = {"denoiser_calls": "denoiser calls", "seconds": "seconds (median)"}
    for axis, (cost, title) in zip(axes, costs.items(), strict=True):
        least, most = np.nanmin(of(rows, cost)), np.nanmax(of(rows, cost))
        axis.set(xlim=(least / 2, most * 2), xlabel=title)
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        for (group, method), cells in by_group(rows).items():
            points = [
                (np.median(of(some, cost)), ratios(some, name).mean())
                for some in cells
                for name in some[0]["distance"]
            ]
            color, marker = f"C{methods.index(method) % 10}", "osD^"[kinds.index(group) % 4]
            axis.scatter(*zip(*points, strict=True), s=12, alpha=0.4, color=color, marker=marker)
            center = np.exp(np.mean(np.log(points), axis=0))
            label = f"{method}: {group}"
            axis.scatter(*center, s=90, color=color, marker=marker, edgecolor="k", label=label)
        axis.axhline(1, color="0.5", linewidth=1)
    axes[0].set_ylabel("distance over that of exact draws")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return drawn


def by_group(rows: Rows) -> dict[tuple[str, str], list[Rows]]:
    """The cells of each group and method."""
    found: dict[tuple[str, str], list[Rows]] = {}
    for (_, method), some in groups(rows).items():
        found.setdefault((some[0]["group"], method), []).append(some)
    return found
