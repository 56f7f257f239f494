"""Evaluation of a method on a problem, and a check of exact answers by importance sampling."""

import math
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import MCMC

import diffppl as dp

from .methods import METHODS, Markov, Setting
from .problem import Draws, Problem, effective_size

MAX_NUMBERS = 30_000_000  # coordinates in memory in importance sampling


def as_numpy(values: dict[str, Any]) -> Draws:
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def measure(
    problem: Problem, run: int, method: str, num_steps: int, num_draws: int
) -> dict[str, Any]:
    """Run the method once; return distances and their floor, the evidence, and the cost."""
    chosen = METHODS[method][0](Setting(problem, num_steps, num_draws))
    draw = draw_markov if isinstance(chosen, Markov) else draw_posterior
    key = jax.random.fold_in(jax.random.key(problem.seed), run)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a collapse, which the smallest ESS records
        draws, found = draw(key, problem, chosen, num_steps, num_draws)
    seconds = time.perf_counter() - start
    rng = np.random.default_rng([problem.seed, run])
    return {
        "distance": problem.distance(rng, draws),
        "floor": problem.floor(rng, num_draws),
        **found,
        "seconds": seconds,
    }


def draw_posterior(
    key: jax.Array, problem: Problem, method: Any, num_steps: int, num_draws: int
) -> tuple[Draws, dict[str, Any]]:
    """Draw by a method of `Posterior`."""
    posterior = dp.Posterior(
        problem.program, method, num_chains=1, num_samples=num_draws, progress_bar=False
    )
    posterior.run(key, problem.model(num_steps), *problem.arguments, y=jnp.asarray(problem.y))
    evidence = posterior.log_evidence
    return as_numpy(posterior.get_samples()), {
        "evidence_error": evidence.value - problem.log_evidence,
        "evidence_standard_error": evidence.standard_error,
        "smallest_ess": float(np.min(posterior.step_stats.get("ess", np.nan))),
        "denoiser_calls": posterior.num_denoiser_calls,
    }


def draw_markov(
    key: jax.Array, problem: Problem, markov: Markov, num_steps: int, num_draws: int
) -> tuple[Draws, dict[str, Any]]:
    """Draw by a kernel of NumPyro's MCMC, in one chain; there is no evidence."""
    num_warmup = min(markov.num_warmup, num_draws)
    mcmc = MCMC(
        markov.kernel(problem.program),
        num_warmup=num_warmup,
        num_samples=num_draws,
        progress_bar=False,
    )
    mcmc.run(key, problem.model(num_steps), *problem.arguments, y=jnp.asarray(problem.y))
    draws = as_numpy({"x": mcmc.get_samples()["x"]})
    calls = math.nan if markov.calls is None else markov.calls * (num_warmup + num_draws)
    nothing = dict.fromkeys(("evidence_error", "evidence_standard_error", "smallest_ess"), math.nan)
    return draws, {**nothing, "denoiser_calls": calls}


def verify(problem: Problem, num_draws: int, most: int = 1_000_000) -> dict[str, float]:
    """Compare the exact answers with importance sampling from the prior.

    The weights are computed from the program, so this also checks that the program and the exact
    posterior agree. The distance is meaningful only if the effective sample size is large; with
    unknown noise the weights have a heavy tail at small sigma, and only the evidence is reliable.
    """
    rng = np.random.default_rng([*problem.cell.encode(), problem.seed, 1])
    size = sum(value[0].size for value in problem.prior(rng, 1).values())
    draws = problem.prior(rng, min(most, MAX_NUMBERS // size))
    model, y = problem.model(2), jnp.asarray(problem.y)

    def log_likelihood(values: dict[str, jax.Array]) -> jax.Array:
        seeded = handlers.seed(problem.program, jax.random.key(0))
        program = handlers.substitute(seeded, data=values)
        trace = handlers.trace(program).get_trace(model, *problem.arguments, y=y)
        seen = (site for site in trace.values() if site["type"] == "sample" and site["is_observed"])
        return sum(jnp.sum(site["fn"].log_prob(site["value"])) for site in seen)

    kind = model.process.dtype
    values = {n: jnp.asarray(v, kind if n == "x" else float) for n, v in draws.items()}
    log_weights = np.asarray(jax.jit(jax.vmap(log_likelihood))(values), dtype=np.float64)
    weights = np.exp(log_weights - log_weights.max())
    relative_error = weights.std() / weights.mean() / np.sqrt(len(weights))
    chosen = rng.choice(len(weights), p=weights / weights.sum(), size=num_draws)
    distance = problem.distance(rng, {name: value[chosen] for name, value in draws.items()})
    floor = problem.floor(rng, num_draws)
    return {
        "log evidence": problem.log_evidence,
        "by importance sampling": float(np.log(weights.mean()) + log_weights.max()),
        "standard error": float(relative_error),
        "effective size": effective_size(weights),
        "distance / floor": max(distance[name] / floor[name] for name in floor),
    }
