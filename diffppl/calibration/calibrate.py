"""Simulation-based calibration: whether a method's posteriors mean what they say.

Draw everything from the program's own prior, theta* ~ p(theta) and y ~ p(y given theta*); draw L
times from the method's posterior given y. If the posterior is right, theta* is one more draw like
the others, and the rank of f(theta*) among f(theta_1), .., f(theta_L) is uniform on {0, .., L}, for
any scalar f, of theta and y. Many simulations make a histogram of ranks: a hump is a posterior
too wide, a valley one too narrow, a slope a bias.

*Which f*. Every coordinate of every latent and deterministic site, in the user's units; what the
user asks for; and log p(y given theta), without which a method that ignores y would pass: its draws
from the prior have uniform ranks in every coordinate.

*Which prior*. The chain's own: diffusion sites are drawn by the reverse chain whose posterior the
method says it draws, at the number of steps that it reads it at. What is judged is the method, not
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

import math
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..blocks import map_in_blocks
from ..checks import check_key, check_size
from ..conditioning import AbstractMethod
from ..conditioning.choose import choose
from ..conditioning.credentials import FEWEST_EFFECTIVE
from ..conditioning.inspection import inspect_program
from ..conditioning.program import (
    Program,
    Values,
    as_dynamic,
    diffusion_distribution,
    run_program,
)
from ..conditioning.target import Target
from ..progress import bar, tick
from ..samplers import AbstractSampler
from .ranks import quantities_at, rank_of_first
from .result import Calibration
from .simulation import Simulated, draw_prior

MOST_COLLAPSED = 0.01  # of the simulations


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
    check_size("batch_size", batch_size)
    if not callable(program):
        raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")
    if not isinstance(method, AbstractMethod | None):
        raise TypeError(
            f"method is {type(method).__name__}; it must be a method such as "
            "diffppl.TwistedSMC(num_particles=1_000)."
        )
    if sampler is not None and not isinstance(sampler, AbstractSampler):
        raise TypeError(f"sampler={sampler!r} must be a sampler, such as samplers.Ancestral().")
    for name, value in (("num_simulations", num_simulations), ("num_samples", num_samples)):
        check_size(name, value)
    if quantities is not None and not callable(quantities):
        raise TypeError(f"quantities is {type(quantities).__name__}; it must be a function.")
    names = (observed,) if isinstance(observed, str) else tuple(observed)
    args, kwargs = as_dynamic((args, kwargs))
    method, num_steps, chain = _check(program, method, args, kwargs, names, num_samples)
    with bar(math.ceil(num_simulations / batch_size), "calibrate", show=progress_bar):
        ranks, failed, collapsed = _simulate(
            key,
            program,
            method,
            args,
            kwargs,
            names,
            chain if sampler is None else sampler,
            num_steps,
            num_simulations,
            num_samples,
            quantities,
            batch_size,
            progress_bar,
        )
        jax.block_until_ready(ranks)
    if (num_failed := int(np.sum(failed))) > 0:
        warnings.warn(
            f"in {num_failed} of {num_simulations} simulations some quantity was NaN, and has "
            "been given the lowest rank: look at the method's settings, or at quantities.",
            stacklevel=2,
        )
    if (num_collapsed := int(np.sum(collapsed))) > MOST_COLLAPSED * num_simulations:
        warnings.warn(
            f"in {num_collapsed} of {num_simulations} simulations the particles collapsed to an "
            f"effective sample size below {FEWEST_EFFECTIVE}, so that their draws are few: use "
            "more particles, another twist, or more steps of the chain.",
            stacklevel=2,
        )
    name = type(method).__name__
    return Calibration(jax.tree.map(np.asarray, ranks), num_samples, name, num_collapsed)


def _check(
    program: Program,
    method: AbstractMethod | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    observed: tuple[str, ...],
    num_samples: int,
) -> tuple[AbstractMethod, int, AbstractSampler]:
    """Refuse what cannot be simulated or conditioned, on shapes alone.

    Returns the method, the number of steps of its chain, and the sampler that runs it.
    """
    holder: dict[str, Any] = {}

    def look(dynamic: Any) -> Values:
        program, args, kwargs = eqx.combine(dynamic, static)
        holder["trace"] = run_program(program, args, kwargs, {})
        return {
            name: holder["trace"][name]["value"] for name in observed if name in holder["trace"]
        }

    dynamic, static = eqx.partition((program, args, kwargs), eqx.is_array)
    shapes = jax.eval_shape(look, dynamic)
    sampled = {name: site for name, site in holder["trace"].items() if site["type"] == "sample"}
    if not observed:
        raise ValueError("observed is empty; name the sites that are data, such as observed='y'.")
    for name in observed:
        if name not in sampled:
            raise ValueError(
                f"observed names {name!r}, but the program's sample sites are {sorted(sampled)}."
            )
        if diffusion_distribution(sampled[name]["fn"]) is not None:
            raise ValueError(
                f"observed names {name!r}, which is a diffusion model; name the sites that are "
                "data and depend on it."
            )
    for name, site in sampled.items():
        if site["is_observed"]:
            raise ValueError(
                f"site {name!r} is observed already, or a numpyro.factor: calibrate draws all data "
                "from the program itself, so leave them out of the call (None), and write factors "
                "as observed sites."
            )
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    conditioned = Simulated(program, zeros)
    inspect_program(conditioned, args, kwargs)

    def judge(program: Program, method: AbstractMethod | None, args: Any, kwargs: Any) -> None:
        if method is None:
            method = holder["method"] = choose(Target(program, args, kwargs), num_samples).method
        target = Target(program, args, kwargs, method.num_steps)
        method.check(target, num_samples)
        holder["chain"] = target.num_steps, method.prior_sampler(target)

    eqx.filter_eval_shape(judge, conditioned, method, args, kwargs)
    return (holder["method"] if method is None else method, *holder["chain"])


@eqx.filter_jit
def _simulate(
    key: Array,
    program: Program,
    method: AbstractMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    observed: tuple[str, ...],
    sampler: AbstractSampler,
    num_steps: int,
    num_simulations: int,
    num_samples: int,
    quantities: Any,
    batch_size: int,
    show: bool,  # noqa: FBT001
) -> tuple[Values, Array, Array]:
    """For each simulation the ranks, whether any value was NaN, and whether particles collapsed."""
    key_directions, key = jax.random.split(key)

    def simulation(key: Array) -> tuple[Values, Array, Array]:
        key_prior, key_draw, key_rank = jax.random.split(key, 3)
        truth = draw_prior(key_prior, program, args, kwargs, sampler, num_steps)
        conditioned = Simulated(program, {name: truth[name] for name in observed})
        target = Target(conditioned, args, kwargs, method.num_steps)
        draws = method.draw(key_draw, target, num_samples, lambda: None)
        values = jax.vmap(lambda x_0, u: {**target.to_user(x_0), **target.constrain(u)})(
            draws.x_0, draws.latents
        )
        # The truth goes through the same arithmetic as the draws, so that ties are ties.
        rows = {
            name: jnp.concatenate([truth[name][None].astype(drawn.dtype), drawn])
            for name, drawn in values.items()
        }
        found = jax.vmap(lambda row: quantities_at(key_directions, target, row, quantities))(rows)
        keys = jax.random.split(key_rank, len(found))
        ranks = {
            name: rank_of_first(key, value)
            for key, (name, value) in zip(keys, sorted(found.items()), strict=True)
        }
        if show:
            tick()  # without arguments: once for each block, whatever its size
        failed = jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in found.values()]))
        fewest = jnp.min(draws.step_stats.get("ess", jnp.asarray(jnp.inf)))
        return ranks, failed, fewest < FEWEST_EFFECTIVE

    return map_in_blocks(simulation, (jax.random.split(key, num_simulations),), batch_size)
