"""Accuracy with all defaults: draws and bounds of normal data, and of tabular data.

First N(0, 1), with its analytic denoiser and with a network fitted with all defaults: the standard
deviation of the draws, and the gap between the bound and log p, which is -1.419 nats. Then tables
of scikit-learn, and a synthetic one with columns of very different scales, heavy tails and
outliers: the errors of the mean and of the standard deviation of each column of the draws. In the
last table outliers are excluded from the comparison, as they are from its scaling.

    python benchmarks/defaults.py            about five minutes
    python benchmarks/defaults.py --tiny     to see that it runs
"""

import argparse
import pathlib
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from sklearn import datasets

import diffppl as dp

NUM_DRAWS = 100_000
STEPS = 100  # length of the chains for tabular data


def network(num_columns: int, num_steps: int) -> dp.DiffusionModel:
    """Return a model with a dense network and all defaults."""
    return dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.log_snr_linear(num_steps)),
        network=dp.networks.MLP((num_columns,), key=jax.random.key(0)),
        event_shape=(num_columns,),
    )


def exact(num_steps: int) -> dp.DiffusionModel:
    """Return N(0, 1) with its analytic denoiser, exact up to the discretisation of the chain."""
    schedule = dp.schedules.log_snr_linear(num_steps)
    known = dp.denoisers.Gaussian(schedule, np.zeros(1), 1.0)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), known, (1,), scaling=dp.Scaling())


def fit(model: dp.DiffusionModel, data: np.ndarray, iterations: int) -> dp.DiffusionModel:
    return dp.fit(
        jax.random.key(1), model, data, num_iterations=iterations, progress_bar=False
    ).model


def normal_rows(steps: list[int], num: int, iterations: int) -> Iterator[str]:
    """Yield one row for each number of steps; errors are standard errors."""
    rng = np.random.default_rng(0)
    data, test = rng.normal(size=(20_000, 1)), rng.normal(size=(num, 1))
    truth = -0.5 * np.log(2 * np.pi) - 0.5 * np.mean(test**2)  # of the test data
    for num_steps in steps:
        models = {"exact": exact(num_steps)}
        models["fitted"] = fit(network(1, num_steps), data, iterations)
        cells = []
        for model in models.values():
            draws = np.asarray(dp.sample(jax.random.key(2), model, (num,)))
            bound = dp.elbo(jax.random.key(3), model, test, steps=dp.AllSteps())
            lost = np.asarray(bound.per_example) + 0.5 * (np.log(2 * np.pi) + test[:, 0] ** 2)
            cells += [f"{draws.std():.4f}", f"{lost.mean():+.3f} ± {lost.std() / num**0.5:.3f}"]
        yield f"| {num_steps} | {' | '.join(cells)} |"
    yield f"(log p of the test data: {truth:.3f} nats)"


def unlike(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return dependent columns of scales 1e-6 to 1e9; one has 1 % outliers by a factor 1,000."""
    z = rng.normal(size=(num, 3)) @ np.array([[1.0, 0.7, -0.4], [0.0, 0.7, 0.3], [0.0, 0.0, 0.8]])
    columns = [
        2e-6 * z[:, 0] + 5e-6,
        np.exp(z[:, 1]) * 1e4,
        rng.standard_t(3, size=num) + z[:, 2],
        1.6e9 + 1e5 * z[:, 0],
        (z[:, 1] > 0.5).astype(float),
        (rng.uniform(size=num) < 0.1) * rng.exponential(size=num),
        np.where(rng.uniform(size=num) < 0.01, 1e3, 1.0) * (z[:, 2] + 3),
    ]
    return np.stack(columns, axis=1)


def table_row(name: str, data: np.ndarray, iterations: int, num: int) -> str:
    """Return the row of the worst errors over columns, without the outliers of `from_data`."""
    model = fit(network(data.shape[1], STEPS), data, iterations)
    draws = np.asarray(dp.sample(jax.random.key(2), model, (num,)), np.float64)
    offs, ratios = [], []
    for column, drawn in zip(data.T, draws.T, strict=True):
        low, high = np.quantile(column, [0.025, 0.975])
        reach = 3.5 * (high - low) if high > low else np.inf
        kept, found = (x[np.abs(x - (low + high) / 2) <= reach] for x in (column, drawn))
        offs.append(abs(found.mean() - kept.mean()) / kept.std())
        ratios.append(found.std() / kept.std())
    shape = f"{data.shape[0]} x {data.shape[1]}"
    return f"| {name} | {shape} | {max(offs):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num, steps = (200, [10]) if args.tiny else (NUM_DRAWS, [10, 20, 50, 100])
    of_normal, of_tables = (20, 20) if args.tiny else (2_000, 5_000)
    warnings.filterwarnings("ignore", "column")  # about the outliers of the last table
    lines = ["| T | exact: sd | bound - log p | fitted: sd | bound - log p |"]
    lines.append("| --- | --- | --- | --- | --- |")
    print("\n".join(lines))
    for row in normal_rows(steps, num, of_normal):
        lines.append(row)
        print(row, flush=True)
    lines += ["", "| table | shape | mean off, in sd | sd, of the data's |"]
    lines.append("| --- | --- | --- | --- |")
    print("\n".join(lines[-3:]))
    tables = {
        "wine": datasets.load_wine().data,
        "breast cancer": datasets.load_breast_cancer().data,
        "diabetes": datasets.load_diabetes(scaled=False).data,
        "unlike units": unlike(np.random.default_rng(0), 5_000),
    }
    for name, data in list(tables.items())[-1 if args.tiny else 0 :]:
        lines.append(table_row(name, data, of_tables, min(num, 20_000)))
        print(lines[-1], flush=True)
    (args.output / "defaults.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
