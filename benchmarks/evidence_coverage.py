"""Coverage of the standard error and the interval of the log-evidence.

Small random problems whose evidence is known, each run once by `Posterior(program)` with its
default method: energies of N <= 10 coupled bits under three priors, summed over all states, and
mixtures of five Gaussians in 64 dimensions with some coordinates observed. For each kind the table
has the share of runs that are flagged as unreliable, and, for the others, the shares of runs with
the exact value within one and two standard errors, within the interval, and beyond five standard
errors.

The standard error is that of the Monte Carlo estimate and excludes the discretisation error of the
chain, which is as large at 100 steps for 16 and 32 observed coordinates. These kinds have 400
steps.

    python benchmarks/evidence_coverage.py            105 problems, about an hour on two cores
    python benchmarks/evidence_coverage.py --tiny     to see that it runs
"""

import argparse
import itertools
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
from jax import Array

import diffppl as dp

NUM_STEPS, MORE_STEPS = 100, 400
DIMENSIONS, COMPONENTS, VARIANCE = 64, 5, 0.25


class Problem(NamedTuple):
    """A program and its arguments, and log p(y) in nats."""

    program: Callable[..., None]
    arguments: tuple[Any, ...]
    log_evidence: float


class Result(NamedTuple):
    """One run: its error and standard error in nats, coverage by the interval, and its fault."""

    error: float
    stated: float
    is_inside: bool
    fault: str


class NoInformation(eqx.Module):
    """A network whose logits do not depend on the observed categories."""

    def __call__(self, x_t: Array, t: Array, context: Array | None) -> Array:
        """Return zero logits for both states."""
        return jnp.zeros((*x_t.shape, 2))


def energies(rng: np.random.Generator, prior: str, size: int, num: int) -> Iterator[Problem]:
    """Yield problems with evidence sum_b p(b) exp(b' J b / 2 + h' b), over spins b in {-1, 1}^N."""
    states = np.array(list(itertools.product([0, 1], repeat=size)))
    schedule = dp.schedules.reciprocal(NUM_STEPS)
    weights = np.exp(1.5 * rng.normal(size=len(states)) * (prior == "table"))
    weights /= weights.sum()
    process: Any = dp.BernoulliDiffusion(schedule)
    network: Any = dp.denoisers.Enumerated(process, states, weights)
    if prior == "absorbing":
        process = dp.CategoricalDiffusion(schedule, 2, dp.Absorbing())
        network = NoInformation()
    model = dp.DiffusionModel(process, network, (size,))
    if prior == "table":  # the law of the chain, which differs slightly from the table
        weights = chain_law(model, states)

    def program(couplings: Array, fields: Array) -> None:
        spins = 2.0 * numpyro.sample("x", model()) - 1
        numpyro.factor("energy", 0.5 * spins @ couplings @ spins + fields @ spins)

    spins = 2 * states - 1
    for _ in range(num):
        upper = np.triu(rng.normal(size=(size, size)), 1)
        couplings = (upper + upper.T) * rng.uniform(0.1, 1.5) / np.sqrt(size)
        fields = rng.normal(size=size) * rng.uniform()
        energy = 0.5 * np.einsum("ni,ij,nj->n", spins, couplings, spins) + spins @ fields
        truth = scipy.special.logsumexp(energy, b=weights)
        yield Problem(program, (jnp.asarray(couplings), jnp.asarray(fields)), float(truth))


def chain_law(model: dp.DiffusionModel, states: np.ndarray) -> np.ndarray:
    """Return p(x_0) of the reverse chain of bits, by its transition matrices over all states."""
    grid = jnp.asarray(states)

    def down(law: Array, t: Array | int) -> tuple[Array, None]:
        kernels = model.reverse_kernel(grid, t)
        log_probs = jax.vmap(kernels.log_prob)(grid)
        return jnp.exp(log_probs) @ law, None

    base = model.process.base(model.event_shape)
    law = jnp.exp(jnp.sum(base.log_prob(grid), axis=-1))
    times = jnp.arange(model.num_steps, 1, -1)
    law = jax.jit(lambda law: jax.lax.scan(down, law, times)[0])(law)
    return np.asarray(down(law, 1)[0], np.float64)  # the final step, a different kernel


def mixtures(
    rng: np.random.Generator, observed: int, num: int, num_steps: int = NUM_STEPS
) -> Iterator[Problem]:
    """Yield problems with `observed` of 64 coordinates observed with noise 0.1 to 1."""
    schedule = dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.02, 100.0))
    means = rng.normal(size=(COMPONENTS, DIMENSIONS))
    weights = rng.dirichlet(np.ones(COMPONENTS))
    network = dp.denoisers.GaussianMixture(schedule, weights, means, np.full(COMPONENTS, VARIANCE))
    model = dp.DiffusionModel(dp.GaussianDiffusion(schedule), network, (DIMENSIONS,))
    places = rng.permutation(DIMENSIONS)[:observed]

    def program(noise: float, y: Array | None = None) -> None:
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(x[places], noise).to_event(1), obs=y)

    for _ in range(num):
        noise = float(np.exp(rng.uniform(np.log(0.1), 0.0)))
        spread = np.sqrt(VARIANCE + noise**2)
        y = means[rng.choice(COMPONENTS, p=weights)][places] + rng.normal(size=observed) * spread
        apart = (y - means[:, places]) / spread
        each = -0.5 * np.sum(apart**2, axis=1) - observed * np.log(spread * np.sqrt(2 * np.pi))
        truth = scipy.special.logsumexp(each, b=weights)
        yield Problem(program, (noise, jnp.asarray(y)), float(truth))


def results(problems: Iterator[Problem], first_key: int) -> Iterator[Result]:
    """Run each problem once; the problems share a program."""
    posterior = None
    for number, problem in enumerate(problems):
        posterior = posterior or dp.Posterior(problem.program, progress_bar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their contents are in the fault
            posterior.run(jax.random.key(first_key + number), *problem.arguments)
        found = posterior.log_evidence
        low, high = found.interval
        inside = bool(low <= problem.log_evidence <= high)
        yield Result(found.value - problem.log_evidence, found.standard_error, inside, found.fault)


def row(name: str, found: list[Result]) -> str:
    """Return a line of the table."""
    good = [result for result in found if not result.fault]
    flagged = 1 - len(good) / len(found)
    if not good:
        return f"| {name} | {len(found)} | {flagged:.2f} | | | | | |"
    z = np.abs([result.error / result.stated for result in good])
    inside = np.mean([result.is_inside for result in good])
    typical = np.median(np.abs([result.error for result in good]))
    return (
        f"| {name} | {len(found)} | {flagged:.2f} | {np.mean(z < 1):.2f} | {np.mean(z < 2):.2f} | "
        f"{inside:.2f} | {np.mean(z > 5):.2f} | {typical:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a minute instead of an hour")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num, seed = (1, args.seed) if args.tiny else (7, args.seed)
    kinds: dict[str, Callable[[np.random.Generator], Iterator[Problem]]] = {}
    for prior in ("table",) if args.tiny else ("fair", "absorbing", "table"):
        for size in (4,) if args.tiny else (4, 7, 10):
            kinds[f"{size} bits, {prior}"] = lambda rng, p=prior, s=size: energies(rng, p, s, num)
    for observed in (1,) if args.tiny else (1, 2, 4, 8):
        kinds[f"mixture, {observed} observed"] = lambda rng, m=observed: mixtures(rng, m, num)
    if not args.tiny:
        kinds["mixture, 16 observed"] = lambda rng: mixtures(rng, 16, num, MORE_STEPS)
        kinds["mixture, 32 observed"] = lambda rng: mixtures(rng, 32, 4, MORE_STEPS)
        kinds["mixture, 64 observed"] = lambda rng: mixtures(rng, 64, 3)
    lines = ["| problems | runs | flagged | within 1 | within 2 | in interval | beyond 5 | nats |"]
    lines.append("| --- " * 8 + "|")
    print(*lines, sep="\n")
    everything: list[Result] = []
    for number, (name, make) in enumerate(kinds.items()):
        if args.only not in name:
            continue
        found = list(results(make(np.random.default_rng([seed, number])), 1_000 * number))
        everything += found
        lines.append(row(name, found))
        print(lines[-1], flush=True)
    lines.append(row("all", everything))
    print(lines[-1])
    (args.output / "evidence_coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
