"""Simulation-based calibration (SBC): a test of the coverage of posterior credible sets.

Simulate from the program's prior, theta* ~ p(theta) and y ~ p(y | theta*), and take L draws from
the method's approximation of p(theta | y). If the approximation is exact, theta* and the draws are
exchangeable, so the rank of f(theta*) among f(theta_1), .., f(theta_L) is uniform on {0, .., L} for
any scalar f(theta, y). The histogram of the ranks over many simulations shows the error: convex if
the posterior is too narrow, concave if it is too wide, sloped if it is biased.

*Test quantities f*. Every coordinate of every latent and deterministic site, in the user's units;
the user's own quantities; and log p(y | theta), which detects a method that ignores y: draws from
the prior have uniform ranks in every coordinate.

*Prior*. Diffusion sites are simulated by the reverse chain that the method conditions, at its
number of steps. The test is therefore of the method, not of the model.

*Large sites*. A site of more than `simulation.LARGE` coordinates is projected on that number of
random directions, the same in every simulation. Every coordinate and every correlation contributes
to each of them, while a subset of coordinates would not test the others, and a Bonferroni
correction over hundreds of coordinates would have little power.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman 2018, "Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration".
    Modrák et al. 2023, "Simulation-Based Calibration Checking for Bayesian Computation: The Choice
    of Test Quantities Shapes Sensitivity".
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike
from tqdm.auto import tqdm

from ..checks.arguments import check_instance, check_key, check_size
from ..conditioning import AbstractMethod
from ..conditioning.bound import BoundProgram, check_program
from ..conditioning.choose import choose
from ..conditioning.diagnostics import MIN_EFFECTIVE
from ..conditioning.method import check_method, draw
from ..conditioning.program import Program, Values
from ..conditioning.target import Target
from ..conditioning.traced import Traced
from ..conditioning.validation import check_observations
from ..samplers import AbstractSampler
from .ranks import mean_copies, rank_of_first
from .result import Calibration
from .simulation import Simulator, quantities_at, simulator, traced_quantities

MAX_COLLAPSED = 0.01  # share of the simulations above which `calibrate` warns


def calibrate(
    key: Array,
    program: Program,
    method: AbstractMethod | None,
    *args: object,
    observed: str | Sequence[str],
    num_simulations: int = 500,
    num_samples: int = 100,
    quantities: Callable[[Values], Mapping[str, ArrayLike]] | None = None,
    sampler: AbstractSampler | None = None,
    batch_size: int = 4,
    progress_bar: bool = True,
    **kwargs: object,
) -> Calibration:
    """Test the calibration of a method on a program by simulation.

    The draws of one simulation should be approximately independent: autocorrelated draws of a
    short Markov chain have overdispersed ranks, even if its stationary distribution is exact.

    Args:
        key: a typed JAX key.
        program: a NumPyro model that samples its data if they are not passed.
        method: the inference method, such as `TwistedSMC(num_particles=1_000)`; None selects the
            default of `Posterior(program)`.
        *args: positional arguments of the program, without its data.
        observed: names of the observed sites.
        num_simulations: number of simulated data sets; the standard error of a coverage is
            proportional to its inverse square root.
        num_samples: posterior draws per simulation; ranks range from 0 to this number.
        quantities: a function of a dictionary of sites (latent and deterministic, one draw) that
            returns a dictionary of further quantities to rank.
        sampler: sampler of diffusion sites from the prior; the chain of the method
            (`AbstractMethod.prior_sampler`) if None.
        batch_size: simulations run at once; a few on a CPU, more on a GPU.
        progress_bar: whether to show a progress bar.
        **kwargs: keyword arguments of the program, without its data.

    Returns:
        A `Calibration`: ranks, p-values and coverages of every quantity.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an observed site that does not exist or is a diffusion site, or a program that
            cannot be simulated or conditioned; the message names the site.

    Warns:
        UserWarning: the particles collapsed in more than 1 % of the simulations, so that the draws
            have few distinct values and the ranks reflect this; or a quantity was NaN.

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
    results = _run(key, experiment, num_simulations, num_samples, batch_size, show=progress_bar)
    ranks, failed, collapsed = results
    num_done = len(failed)
    if (num_failed := int(np.sum(failed))) > 0:
        warnings.warn(
            f"in {num_failed} of {num_done} simulations some quantity was NaN and was assigned "
            "the lowest rank: check the method's settings and quantities.",
            stacklevel=2,
        )
    if (num_collapsed := int(np.sum(collapsed))) > MAX_COLLAPSED * num_done:
        warnings.warn(
            f"in {num_collapsed} of {num_done} simulations the particles collapsed to an "
            f"effective sample size below {MIN_EFFECTIVE}, so that few draws are distinct: use "
            "more particles, another twist, or more steps of the chain.",
            stacklevel=2,
        )
    name = type(experiment.method).__name__
    return Calibration(ranks, num_samples, name, num_collapsed)


class _Experiment(NamedTuple):
    """The inputs of one simulation, except its key."""

    bound: BoundProgram
    simulator: Simulator
    method: AbstractMethod
    observed: tuple[str, ...]
    quantities: Traced | None


def _prepare(
    key: Array,
    program: Program,
    method: AbstractMethod | None,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    observed: tuple[str, ...],
    sampler: AbstractSampler | None,
    quantities: Callable[[Values], Mapping[str, ArrayLike]] | None,
    num_samples: int,
) -> _Experiment:
    """Check the program and its observed sites, and resolve the default settings."""
    if not observed:
        raise ValueError("observed is empty; name the sites that are data, such as observed='y'.")
    # Without a sampler diffusion sites are zero: this simulation only provides names and shapes.
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
    # The prior must be that of the chain whose posterior is drawn, or the ranks are not uniform.
    chain = method.prior_sampler() if sampler is None else sampler
    simulate = simulator(program, args, kwargs, chain, target.num_steps)
    wanted = None
    if quantities is not None:
        example = {name: example[name] for name in bound.traces.shapes}
        wanted = traced_quantities(quantities, bound, example)
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
    """Run the simulations in batches; a keyboard interrupt returns the finished ones."""
    key_directions, key_runs = jax.random.split(key)
    keys = jax.random.split(key_runs, num_simulations)
    size = min(batch_size, num_simulations)
    batches = []
    bar = tqdm(total=num_simulations, desc="calibrate", disable=not show, dynamic_ncols=True)
    try:
        for first in range(0, num_simulations, size):
            # The last batch is padded with repeated simulations, which are discarded below, so
            # that all batches share one compilation.
            indices = np.arange(first, first + size) % num_simulations
            batch = _simulate(keys[indices], experiment, num_samples, key_directions=key_directions)
            batches.append(jax.device_get(batch))
            bar.update(min(size, num_simulations - first))
    except KeyboardInterrupt:
        if not batches:
            raise
        warnings.warn(
            f"calibrate was interrupted after {len(batches) * size} of {num_simulations} "
            "simulations, which are kept.",
            stacklevel=3,
        )
    finally:
        bar.close()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_simulations], *batches)


@eqx.filter_jit
def _simulate(
    keys: Array, experiment: _Experiment, num_samples: int, *, key_directions: Array
) -> tuple[Values, Array, Array]:
    """Return per key the ranks, whether a quantity was NaN, and whether particles collapsed."""
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
        # The simulated value and the draws are evaluated by the same compiled arithmetic, so that
        # equal inputs yield equal quantities and ties are detected exactly.
        rows = {
            name: jnp.concatenate([truth[name][None].astype(drawn[name].dtype), drawn[name]])
            for name in bound.traces.shapes
        }
        quantities = jax.vmap(
            lambda row: quantities_at(key_directions, bound, row, experiment.quantities)
        )(rows)
        keys_rank = jax.random.split(key_rank, len(quantities))
        copies = mean_copies((draws.x_0, draws.latents), draws.sample_stats.get("particle"))
        ranks = {
            name: rank_of_first(key, value, copies)
            for key, (name, value) in zip(keys_rank, sorted(quantities.items()), strict=True)
        }
        failed = jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in quantities.values()]))
        smallest_ess = jnp.min(draws.step_stats.get("ess", jnp.asarray(jnp.inf)))
        return ranks, failed, smallest_ess < MIN_EFFECTIVE

    return jax.vmap(simulation)(keys)
