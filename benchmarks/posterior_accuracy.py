"""Accuracy of all methods on problems with known posteriors.

    mixtures   25 Gaussians in 8, 80 or 800 dimensions, linear observations (MCGdiff's table)
    noise      the same with unknown noise level
    mask       the same with one noiseless observation of a coordinate
    curves     smooth curves and images, with 8 to 512 linear observations
    grid       a square, a product, a radius, a count, a label of one or two coordinates
    heartbeat  five binary sequences, with bits missing and flipped

Every prior has an analytic denoiser, so the error is that of the method and of the discretised
chain. Distances are sliced Wasserstein distances (for heartbeats total variation) to exact
posterior draws; the floor is the distance between two sets of exact draws, the minimum for any
method.

    python benchmarks/posterior_accuracy.py --problems 20                     hours
    python benchmarks/posterior_accuracy.py --problems 5 --only grid          minutes
    python benchmarks/posterior_accuracy.py --verify                          check the answers
    python benchmarks/posterior_accuracy.py --tiny                            to see that it runs

Results are appended to OUTPUT/posterior_accuracy.jsonl, and an interrupted run resumes from there.
Delete the file to start again.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from posterior import curves, grids, heartbeat, measure, mixtures, report
from posterior.methods import METHODS
from posterior.problem import Problem
from tqdm import tqdm

GROUPS = {
    "mixtures": [
        lambda seed, cell=cell: mixtures.published(*cell, seed) for cell in mixtures.CELLS
    ],
    "noise": [lambda seed: mixtures.published_unknown(8, 2, seed)],
    "curves": [lambda seed, cell=cell: curves.problem(*cell, seed) for cell in curves.CELLS],
    "mask": [lambda seed: mixtures.Mask(8, seed)],
    "grid": [lambda seed, cell=cell: grids.Grid(*cell, seed) for cell in grids.CELLS],
    "heartbeat": [heartbeat.Heartbeat],
}
KEY = ("cell", "seed", "run", "method", "steps", "draws")  # identifies a stored result
# Number of compiled methods after which caches are cleared: several hundred in one process reach
# its limit of memory maps.
MAX_PROGRAMS = 40


def problems(args: argparse.Namespace) -> list[Problem]:
    """Return the problems: all cells for the first seed, then for the next."""
    cells = [make for name in args.only for make in GROUPS[name][: 1 if args.tiny else None]]
    return [make(seed) for seed in range(args.problems) for make in cells]


def check_truths(args: argparse.Namespace) -> None:
    """Compare exact answers with importance sampling, which requires noisy observations."""
    errors = []
    for problem in problems(args):
        if problem.group == "mask":
            continue
        found = measure.verify(problem, args.draws, 10_000 if args.tiny else 1_000_000)
        gap = found["by importance sampling"] - found["log evidence"]
        errors.append(gap / max(found["standard error"], 1e-6))
        numbers = "  ".join(f"{name} {value:9.4g}" for name, value in found.items())
        print(f"{problem.cell:16s} {problem.seed:2d}  {numbers}", flush=True)
    size = np.sqrt(np.mean(np.square(errors)))
    print(f"evidence: root mean square of error / standard error {size:.2f}")


def write(rows: list, output: pathlib.Path) -> str:
    lines = report.table(rows)
    text = "\n".join([report.as_text(lines), "", *report.overall(rows)]) + "\n"
    (output / "posterior_accuracy.txt").write_text(text)
    (output / "posterior_accuracy.md").write_text(report.as_markdown(lines) + "\n")
    return text


def subset(*allowed: str):
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(f"no {unknown}; there are {', '.join(allowed)}")
        return text.split(",")

    return parse


def find_tasks(args: argparse.Namespace) -> list[tuple[int, Problem, str]]:
    """Return all (run, problem, method); with --tiny every kind of method and every group once."""
    found = [
        (run, problem, name)
        for run in range(args.runs)
        for problem in problems(args)
        for name in args.methods
        if METHODS[name][1](problem)
    ]
    if not args.tiny:
        return found
    kinds = {name.split(":")[0]: name for name in reversed(args.methods)}.values()
    first = args.only[0], args.methods[0]
    return [t for t in found if t[2] in kinds and (t[1].group == first[0] or t[2] == first[1])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="one small problem of each group")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--problems", type=int, default=20, help="data sets of each cell")
    parser.add_argument("--runs", type=int, default=1, help="of each method on each problem")
    parser.add_argument("--steps", type=int, help="of the chain; by default the problem's own")
    parser.add_argument("--draws", type=int, default=2_000, help="and particles")
    parser.add_argument("--only", type=subset(*GROUPS), default=list(GROUPS), metavar="GROUPS")
    parser.add_argument("--methods", type=subset(*METHODS), default=list(METHODS))
    parser.add_argument("--verify", action="store_true", help="check the truths, run no method")
    args = parser.parse_args()
    if args.tiny:
        args.problems, args.steps, args.draws = 1, 10, 100
    if args.verify:
        check_truths(args)
        return

    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / "posterior_accuracy.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {tuple(row[name] for name in KEY): row for row in done}
    rows, num_measured = [], 0
    with tqdm(find_tasks(args), dynamic_ncols=True) as bar:
        for run, problem, method in bar:
            bar.set_description(f"{problem.cell}, {problem.seed}: {method}")
            steps = args.steps or problem.num_steps
            key = (problem.cell, problem.seed, run, method, steps, args.draws)
            if key not in known:
                row = {"group": problem.group, **dict(zip(KEY, key, strict=True))}
                row |= measure.measure(problem, run, method, steps, args.draws)
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                known[key] = row
                num_measured += 1
                if num_measured % MAX_PROGRAMS == 0:
                    jax.clear_caches()
            rows.append(known[key])
    print(write(rows, args.output))
    report.figure(rows).savefig(args.output / "posterior_accuracy.png", dpi=120)


if __name__ == "__main__":
    main()
