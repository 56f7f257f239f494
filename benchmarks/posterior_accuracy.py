"""How near a posterior comes to the truth: mixtures of 25 Gaussians seen through a linear map.

The problems are those of Cardoso et al. 2024 (MCGdiff): a lattice of 25 unit Gaussians with random
weights, A with singular values sorted uniform, noise sigma uniform times the largest. The prior's
denoiser is exact, so what is measured is the method. The distance is the Wasserstein distance of
one-dimensional projections, averaged over random directions, to exact posterior draws; the floor
is that of exact draws to exact draws, the lowest any method can show.

    python benchmarks/posterior_accuracy.py [--tiny] [--problems 20] [--steps 100]
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import diffppl as dp

CELLS = [(8, 1), (8, 2), (8, 4)]
NUM_DRAWS = 2_000
LATTICE = np.array([[i, j] for i in range(-2, 3) for j in range(-2, 3)], dtype=float)


def make_problem(dimension: int, num_observed: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([dimension, num_observed, seed])
    weights = rng.normal(size=25) ** 2
    means = np.tile(8 * LATTICE, (1, dimension // 2))
    u, singular, v = np.linalg.svd(rng.normal(size=(num_observed, dimension)), full_matrices=False)
    singular = np.sort(rng.uniform(size=num_observed))[::-1]
    matrix = u * singular @ v
    sigma = rng.uniform() * singular.max()
    problem = {"weights": weights / weights.sum(), "means": means, "A": matrix, "sigma": sigma}
    x = means[rng.choice(25, p=problem["weights"])] + rng.normal(size=dimension)
    return problem | {"y": matrix @ x + sigma * rng.normal(size=num_observed)}


class Exact:
    """The posterior is again a mixture of 25 Gaussians."""

    def __init__(self, problem: dict[str, np.ndarray]) -> None:
        a, y, means = problem["A"], problem["y"], problem["means"]
        total = a @ a.T + problem["sigma"] ** 2 * np.eye(len(y))
        residual = y - means @ a.T
        solved = np.linalg.solve(total, residual.T).T
        _, log_det = np.linalg.slogdet(2 * np.pi * total)
        log_joint = np.log(problem["weights"]) - 0.5 * ((residual * solved).sum(1) + log_det)
        self.log_evidence = np.logaddexp.reduce(log_joint)
        self.weights = np.exp(log_joint - self.log_evidence)
        self.means = means + solved @ a
        covariance = np.eye(means.shape[1]) - a.T @ np.linalg.solve(total, a)
        values, vectors = np.linalg.eigh(covariance)
        self.root = vectors * np.sqrt(np.maximum(values, 0))

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Independent posterior draws."""
        component = rng.choice(25, p=self.weights / self.weights.sum(), size=num)
        return self.means[component] + rng.normal(size=(num, len(self.root))) @ self.root.T


def sliced_wasserstein(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> float:
    directions = rng.normal(size=(a.shape[1], 100))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean())


def make_model(problem: dict[str, np.ndarray], num_steps: int) -> dp.DiffusionModel:
    """Noise levels in equal ratios, up to ten times the length of the data."""
    means = problem["means"]
    length = np.sqrt((means**2).sum(1).max() + means.shape[1])
    schedule = dp.schedules.LogSNRLinear(num_steps, noise_to_signal=(0.05, 10 * length))
    denoiser = dp.networks.GaussianMixtureDenoiser(schedule, problem["weights"], means, 1.0)
    return dp.DiffusionModel(dp.GaussianDiffusion(schedule), denoiser, (means.shape[1],))


def program(model, matrix, sigma, y=None):
    x = numpyro.sample("x", model())
    numpyro.sample("y", dist.Normal(matrix @ x, sigma).to_event(1), obs=y)


def run_cell(cell: tuple[int, int], method: dp.TwistedSMC, steps: int, problems: int) -> list:
    rows = []
    for seed in range(problems):
        problem = make_problem(*cell, seed)
        exact = Exact(problem)
        posterior = dp.Posterior(
            program, method, num_chains=1, num_samples=method.num_particles, progress_bar=False
        )
        start = time.perf_counter()
        arrays = (jnp.asarray(problem[name]) for name in ("A", "sigma"))
        posterior.run(
            jax.random.key(seed), make_model(problem, steps), *arrays, y=jnp.asarray(problem["y"])
        )
        seconds = time.perf_counter() - start
        rng = np.random.default_rng(seed)
        x = np.asarray(posterior.get_samples()["x"], np.float64)
        num = len(x)
        distance = np.mean([sliced_wasserstein(rng, x, exact.draw(rng, num)) for _ in range(4)])
        floor = np.mean(
            [sliced_wasserstein(rng, exact.draw(rng, num), exact.draw(rng, num)) for _ in range(10)]
        )
        error = posterior.log_evidence.value - exact.log_evidence
        rows.append((distance, floor, error, posterior.log_evidence.standard_error, seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    problems, particles = (1, 100) if args.tiny else (args.problems, NUM_DRAWS)
    steps = 10 if args.tiny else args.steps
    lines = ["d_x d_y  distance  floor  ratio of means  mean of ratios  evidence: mean, size, s.e."]
    for cell in CELLS[:1] if args.tiny else CELLS:
        rows = np.array(run_cell(cell, dp.TwistedSMC(particles), steps, problems))
        distance, floor, error, standard_error, seconds = rows.T
        lines.append(
            f"{cell[0]:3d} {cell[1]:3d}  {distance.mean():8.3f}  {floor.mean():5.3f}  "
            f"{distance.mean() / floor.mean():14.2f}  {(distance / floor).mean():14.2f}  "
            f"{error.mean():+14.3f}, {np.abs(error).mean():.3f}, {standard_error.mean():.3f}"
            f"   {np.median(seconds):.2f} s a run"
        )
        print("\n".join(lines[-2:] if len(lines) == 2 else lines[-1:]), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "posterior_accuracy.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
