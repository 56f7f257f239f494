"""Reproduction of tables 1 and 2 of Sohl-Dickstein et al. 2015, row by row, at three sizes.

    python benchmarks/paper_tables.py --rows swiss_roll,heartbeat          minutes on two cores
    python benchmarks/paper_tables.py --data FOLDER                        all rows, hours
    python benchmarks/paper_tables.py --size full --rows mnist             on an accelerator
    python benchmarks/paper_tables.py --tiny                               to see that it runs

Every row is appended to OUTPUT/paper_tables.jsonl, and all rows in this file are written to
OUTPUT/RESULTS.md. The fit of an interrupted row resumes from its last checkpoint.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
from paper import binary, images, tables, toys
from paper.row import Run, Size

ROWS = {
    "swiss_roll": toys.swiss_roll,
    "heartbeat": toys.heartbeat,
    "bark": images.bark,
    "dead_leaves": images.dead_leaves,
    "cifar10": images.cifar10,
    "mnist": images.mnist,
    "binarized_mnist": binary.bernoulli,
    "binarized_mnist_absorbing": binary.absorbing,
}


def names(text: str) -> list[str]:
    """Parse comma-separated names of rows."""
    found = text.split(",")
    if unknown := set(found) - set(ROWS):
        raise argparse.ArgumentTypeError(f"no row {unknown}; there are {', '.join(ROWS)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="the same as --size tiny")
    parser.add_argument("--size", type=Size, choices=list(Size), default=Size.SMALL)
    parser.add_argument("--rows", type=names, default=list(ROWS), metavar="ROWS")
    parser.add_argument("--data", type=pathlib.Path, metavar="FOLDER", help="see paper/files.py")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    size = Size.TINY if args.tiny else args.size
    run = Run(size, args.output, args.data)
    kept = args.output / "paper_tables.jsonl"
    for name in args.rows:
        row = ROWS[name](run)
        row.size, row.device = size.value, jax.devices()[0].device_kind
        print(f"{row.name}: {row.value:.3f} ± {row.error:.3f} {row.unit}", flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
    rows = {}
    for line in kept.read_text().splitlines():
        row = json.loads(line)
        rows[row["name"], row["size"]] = row  # the most recent one
    text = tables.markdown(list(rows.values()))
    (args.output / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
