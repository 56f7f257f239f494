"""Simulation-based calibration: whether credible sets have the coverage that they state.

Draw everything from the program's own prior, theta* ~ p(theta) and y ~ p(y given theta*); draw L
times from the method's posterior given y. If the posterior is right, theta* is one more draw like
the others, and the rank of f(theta*) among f(theta_1), .., f(theta_L) is uniform on {0, .., L}, for
any scalar f, of theta and y. Many simulations make a histogram of ranks: a hump is a posterior
too wide, a valley one too narrow, a slope a bias.

*Which f*. Every coordinate of every latent and deterministic site, in the user's units; what the
user asks for; and log p(y given theta), without which a method that ignores y would pass: its draws
from the prior have uniform ranks in every coordinate.

*Which prior*. The chain's own: diffusion sites are drawn by the reverse chain whose posterior the
method draws, at its number of steps. What is judged is the method, not
the model.

*Large sites*. A site of more than `ranks.LARGE` coordinates is looked at along as many random
directions, the same in every simulation: each coordinate, and each correlation, has its part in all
of them, where a choice of coordinates would be blind to the rest, and hundreds of p-values are no
verdict.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman 2018, "Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration".
    Modrák et al. 2023, "Simulation-Based Calibration Checking for Bayesian Computation: The Choice
    of Test Quantities Shapes Sensitivity".
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from ..checks.arguments import check_instance, check_key, check_size
from ..conditioning import AbstractMethod
from ..conditioning.bound import BoundProgram, check_program
from ..conditioning.choose import choose
from ..conditioning.diagnostics import MIN_EFFECTIVE
from ..conditioning.method import check_method, draw
from ..conditioning.program import Values
from ..conditioning.target import Target
from ..conditioning.traced import Traced
from ..conditioning.validation import check_observations
from ..samplers import AbstractSampler
from .ranks import mean_copies, rank_of_first
from .result import Calibration
from .simulation import Simulator, quantities_at, simulator, traced_quantities

MAX_COLLAPSED = 0.01  # of the simulations


def calibrate(
    key: Any,
    program: Any,
    method: Any,
    *args: Any,
    observed: str | Sequence[str],
    num_simulations: Any = 500,
    num_samples: Any = 100,
    quantities: Any = None,
    sampler: Any = None,
    batch_size: int = 4,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of a method on a program.

    The draws of one simulation should be independent, or nearly: draws of a short Markov chain
    have ranks that are too extreme, even if the chain is right.

    Args:
        key: a typed JAX key.
        program: a NumPyro model that draws its data if it is not given them.
        method: how the posterior is drawn, for instance `TwistedSMC(num_particles=1_000)`; None
            takes what `Posterior(program)` would.
        *args: for the program, without its data.
        observed: names of the sites that are data.
        num_simulations: data sets to simulate; the error of a coverage falls with the square root.
        num_samples: posterior draws for each; ranks go from 0 to this.
        quantities: a function of a dictionary of sites (latent and deterministic, one draw) that
            returns a dictionary of numbers to be ranked as well.
        sampler: how diffusion sites are drawn from the prior; by the method's own chain
            (`AbstractMethod.prior_sampler`) if None.
        batch_size: simulations made at once; a few suit a CPU, and more pay on a GPU.
        progress_bar: whether to show one.
        **kwargs: for the program, without its data.

    Raises:
        TypeError: a wrong kind of argument.
        ValueError: no such site, or one that is not free to be drawn; a program that cannot be
            simulated, or not conditioned; the message names the site.

    Warns:
        UserWarning: in more than 1 % of the simulations the particles collapsed: their draws are
            few, and what is judged is that. Or a quantity was NaN.

    Example:
        >>> method = dp.TwistedSMC(num_particles=1_000)
        >>> result = dp.calibrate(jax.random.key(0), program, method, observed="y")
        >>> result.print_summary()
        >>> dp.plots.calibration(result)
    """
    key = check_key(key)
    batch_size = check_size("batch_size", batch_size)
    check_program(program)
    check_method(method)
    if sampler is not None:
        check_instance("sampler", sampler, AbstractSampler)
    num_simulations = check_size("num_simulations", num_simulations)
    num_samples = check_size("num_samples", num_samples)
    if quantities is not None and not callable(quantities):
        raise TypeError(f"quantities is {type(quantities).__name__}; it must be a function.")
    names = (observed,) if isinstance(observed, str) else tuple(observed)
    experiment = _prepare(
        key, program, method, args, kwargs, names, sampler, quantities, num_samples
    )
    found = _run(key, experiment, num_simulations, num_samples, batch_size, show=progress_bar)
    ranks, failed, collapsed = found
    num_done = len(failed)
    if (num_failed := int(np.sum(failed))) > 0:
        warnings.warn(
            f"in {num_failed} of {num_done} simulations some quantity was NaN, and has "
            "been given the lowest rank: look at the method's settings, or at quantities.",
            stacklevel=2,
        )
    if (num_collapsed := int(np.sum(collapsed))) > MAX_COLLAPSED * num_done:
        warnings.warn(
            f"in {num_collapsed} of {num_done} simulations the particles collapsed to an "
            f"effective sample size below {MIN_EFFECTIVE}, so that their draws are few: use "
            "more particles, another twist, or more steps of the chain.",
            stacklevel=2,
        )
    name = type(experiment.method).__name__
    return Calibration(ranks, num_samples, name, num_collapsed)


class _Experiment(NamedTuple):
    """All that one simulation needs but its key."""

    bound: BoundProgram
    simulator: Simulator
    method: AbstractMethod
    observed: tuple[str, ...]
    quantities: Traced | None


def _prepare(
    key: Array,
    program: Any,
    method: AbstractMethod | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    observed: tuple[str, ...],
    sampler: AbstractSampler | None,
    quantities: Any,
    num_samples: int,
) -> _Experiment:
    """Refuse what cannot be simulated or conditioned, and fill in every setting."""
    if not observed:
        raise ValueError("observed is empty; name the sites that are data, such as observed='y'.")
    plain = simulator(program, args, kwargs)
    example = plain(key)
    for name in observed:
        if name not in example:
            raise ValueError(
                f"observed names {name!r}, but the program's sample sites are {sorted(example)}."
            )
        if name in plain.diffusion:
            raise ValueError(
                f"observed names {name!r}, which is a diffusion model; name the sites that are "
                "data and depend on it."
            )
    bound = BoundProgram(program, args, kwargs, {name: example[name] for name in observed})
    check_observations(bound)
    if method is None:
        method = choose(Target(bound), num_samples).method
    target = Target(bound, method.num_steps)
    method = method.resolve(target, num_samples)
    chain = method.prior_sampler() if sampler is None else sampler
    simulate = simulator(program, args, kwargs, chain, target.num_steps)
    wanted = None
    if quantities is not None:
        opened = {name: example[name] for name in bound.traces.shapes}
        wanted = traced_quantities(quantities, bound, opened)
    return _Experiment(bound, simulate, method, observed, wanted)


def _run(
    key: Array,
    experiment: _Experiment,
    num_simulations: int,
    num_samples: int,
    batch_size: int,
    *,
    show: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The simulations, some at a time; an interrupt keeps those that were finished."""
    key_directions, key_runs = jax.random.split(key)
    keys = jax.random.split(key_runs, num_simulations)
    size = min(batch_size, num_simulations)
    found = []
    bar = tqdm(total=num_simulations, desc="calibrate", disable=not show, dynamic_ncols=True)
    try:
        for first in range(0, num_simulations, size):
            # The last batch is filled up with simulations that do not count.
            which = np.arange(first, first + size) % num_simulations
            batch = _simulate(keys[which], experiment, num_samples, key_directions=key_directions)
            found.append(jax.device_get(batch))
            bar.update(min(size, num_simulations - first))
    except KeyboardInterrupt:
        if not found:
            raise
        warnings.warn(
            f"calibrate was interrupted after {len(found) * size} of {num_simulations} "
            "simulations, which are kept.",
            stacklevel=3,
        )
    finally:
        bar.close()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_simulations], *found)


@eqx.filter_jit
def _simulate(
    keys: Array, experiment: _Experiment, num_samples: int, *, key_directions: Array
) -> tuple[Values, Array, Array]:
    """For each key the ranks, whether any value was NaN, and whether particles collapsed."""
    method, observed = experiment.method, experiment.observed

    def simulation(key: Array) -> tuple[Values, Array, Array]:
        key_prior, key_draw, key_free, key_rank = jax.random.split(key, 4)
        truth = experiment.simulator(key_prior)
        bound = experiment.bound.with_data({name: truth[name] for name in observed})
        target = Target(bound, method.num_steps)
        draws = draw(key_draw, target, method, num_samples)
        drawn = jax.vmap(lambda key, x_0, u: target.draw(key, x_0, u).values)(
            jax.random.split(key_free, num_samples), draws.x_0, draws.latents
        )
        # The truth goes through the same arithmetic as the draws, so that ties are ties.
        rows = {
            name: jnp.concatenate([truth[name][None].astype(drawn[name].dtype), drawn[name]])
            for name in bound.traces.shapes
        }
        found = jax.vmap(
            lambda row: quantities_at(key_directions, bound, row, experiment.quantities)
        )(rows)
        each = jax.random.split(key_rank, len(found))
        copies = mean_copies((draws.x_0, draws.latents), draws.sample_stats.get("particle"))
        ranks = {
            name: rank_of_first(key, value, copies)
            for key, (name, value) in zip(each, sorted(found.items()), strict=True)
        }
        failed = jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in found.values()]))
        fewest = jnp.min(draws.step_stats.get("ess", jnp.asarray(jnp.inf)))
        return ranks, failed, fewest < MIN_EFFECTIVE

    return jax.vmap(simulation)(keys)
