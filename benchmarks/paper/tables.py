"""Conversion of rows to a Markdown table."""

from typing import Any

HEAD = ["row", "unit", "paper", "here", "null model", "references", "T", "parameters", "iterations"]
HEAD += ["minutes", "data", "size", "device"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return one table of all rows."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in rows:
        references = "; ".join(f"{name} {value:.3f}" for name, value in row["compared"].items())
        null = "" if row["null"] is None else f"{row['null']:.3f}"
        lines.append(
            [
                row["name"],
                row["unit"],
                row["paper"],
                f"{row['value']:.3f} ± {row['error']:.3f}",
                null,
                references,
                f"{row['num_steps']:,}",
                f"{row['parameters']:,}",
                f"{row['iterations']:,}",
                f"{row['seconds'] / 60:.1f}",
                row["data"],
                row["size"],
                row["device"],
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
