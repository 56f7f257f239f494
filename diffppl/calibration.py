"""Simulation-based calibration: whether a method's posteriors mean what they say.

Draw everything from the program's own prior, theta* ~ p(theta) and y ~ p(y given theta*); draw L
times from the method's posterior given y. If the posterior is right, theta* is one more draw like
the others, and the rank of f(theta*) among f(theta_1), .., f(theta_L) is uniform on {0, .., L}, for
any scalar f, of theta and y. Many simulations make a histogram of ranks: a hump is a posterior
too wide, a valley one too narrow, a slope a bias.

*Which f*. Every coordinate of every latent and deterministic site, in the user's units; what the
user asks for; and log p(y given theta), without which a method that ignores y would pass: its draws
from the prior have uniform ranks in every coordinate.

*Which prior*. The chain's own: diffusion sites are drawn by the reverse chain at the number of
steps that the method reads it at. What is judged is the method, not the model.

*Large sites*. A site of more than `LARGE` coordinates is looked at along as many random directions,
the same in every simulation: each coordinate, and each correlation, has its part in all of them,
where a choice of coordinates would be blind to the rest, and hundreds of p-values are no verdict.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman 2018, "Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration".
    Modrák et al. 2023, "Simulation-Based Calibration Checking for Bayesian Computation: The Choice
    of Test Quantities Shapes Sensitivity".
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers

from .blocks import check_batch_size, map_in_blocks
from .calibration_result import Calibration
from .checks import check_key
from .conditioning import AbstractMethod, Posterior
from .conditioning.program import (
    Program,
    Values,
    as_dynamic,
    diffusion_distribution,
    inspect_program,
    is_exact,
    run_program,
)
from .conditioning.target import Target
from .progress import bar, tick
from .samplers.ancestral import ancestral

LARGE = 32


@final
class Simulated(eqx.Module):
    """A program whose data are given as arrays, so that new data compile nothing."""

    program: Program
    data: Values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program, conditioned on the data."""
        data: dict[str, Any] = dict(self.data)
        return handlers.condition(self.program, data)(*args, **kwargs)


def calibrate(
    key: Any,
    program: Any,
    method: Any,
    *args: Any,
    observed: str | Sequence[str],
    num_simulations: int = 500,
    num_samples: int = 100,
    quantities: Any = None,
    batch_size: int = 1,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of a method on a program.

    The draws of one simulation should be independent, or nearly: draws of a short Markov chain
    have ranks that are too extreme, even if the chain is right.

    Args:
        key: a typed JAX key.
        program: a NumPyro model that draws its data if it is not given them.
        method: how the posterior is drawn, for instance `TwistedSMC(num_particles=1_000)`.
        *args: for the program, without its data.
        observed: names of the sites that are data.
        num_simulations: data sets to simulate; the error of a coverage falls with the square root.
        num_samples: posterior draws for each; ranks go from 0 to this.
        quantities: a function of a dictionary of sites (latent and deterministic, one draw) that
            returns a dictionary of numbers to be ranked as well.
        batch_size: simulations made at once; more pays on a GPU.
        progress_bar: whether to show one.
        **kwargs: for the program, without its data.

    Raises:
        TypeError: a wrong kind of argument.
        ValueError: no such site, or one that is not free to be drawn; a program that cannot be
            simulated, or not conditioned; the message names the site.

    Example:
        >>> method = dp.TwistedSMC(num_particles=1_000)
        >>> result = dp.calibrate(jax.random.key(0), program, method, observed="y")
        >>> result.print_summary()
        >>> dp.plots.calibration(result)
    """
    check_key(key)
    check_batch_size(batch_size)
    Posterior(program, method, num_samples=num_samples)  # refuses what it would refuse
    is_whole = isinstance(num_simulations, int) and not isinstance(num_simulations, bool)
    if not is_whole or num_simulations < 1:
        raise ValueError(f"num_simulations={num_simulations!r} must be a whole number, 1 or more.")
    if quantities is not None and not callable(quantities):
        raise TypeError(f"quantities is {type(quantities).__name__}; it must be a function.")
    names = (observed,) if isinstance(observed, str) else tuple(observed)
    args, kwargs = as_dynamic((args, kwargs))
    num_steps = _check(program, method, args, kwargs, names, num_samples)
    with bar(math.ceil(num_simulations / batch_size), "calibrate", show=progress_bar):
        ranks, failed = _simulate(
            key,
            program,
            method,
            args,
            kwargs,
            names,
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
    return Calibration(jax.tree.map(np.asarray, ranks), num_samples, repr(method))


def _check(
    program: Program,
    method: AbstractMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    observed: tuple[str, ...],
    num_samples: int,
) -> int:
    """Refuse what cannot be simulated or conditioned, on shapes alone; the chain's steps."""
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
    return Posterior(conditioned, method, num_samples=num_samples)._check(args, kwargs)


@eqx.filter_jit
def _simulate(
    key: Array,
    program: Program,
    method: AbstractMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    observed: tuple[str, ...],
    num_steps: int,
    num_simulations: int,
    num_samples: int,
    quantities: Any,
    batch_size: int,
    show: bool,  # noqa: FBT001
) -> tuple[Values, Array]:
    """Ranks of every quantity, and whether any of its values was NaN, for each simulation."""
    key_directions, key = jax.random.split(key)

    def simulation(key: Array) -> tuple[Values, Array]:
        key_prior, key_draw, key_rank = jax.random.split(key, 3)
        truth = _draw_prior(key_prior, program, args, kwargs, num_steps)
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
        found = jax.vmap(lambda row: _look(key_directions, target, row, quantities))(rows)
        keys = jax.random.split(key_rank, len(found))
        ranks = {
            name: _rank(key, value)
            for key, (name, value) in zip(keys, sorted(found.items()), strict=True)
        }
        if show:
            tick()  # without arguments: once for each block, whatever its size
        return ranks, jnp.any(jnp.stack([jnp.any(jnp.isnan(x)) for x in found.values()]))

    return map_in_blocks(simulation, (jax.random.split(key, num_simulations),), batch_size)


def _draw_prior(
    key: Array, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], num_steps: int
) -> Values:
    """Every sample site of the program, diffusion sites by their chain of `num_steps` steps."""

    def value(site: dict[str, Any]) -> Array | None:
        found = diffusion_distribution(site["fn"]) if site["type"] == "sample" else None
        if found is None:
            return None
        model, shape = found.model.respace(num_steps), site["fn"].shape()
        batch_shape = shape[: len(shape) - len(model.event_shape)]
        drawn = ancestral(site["kwargs"]["rng_key"], model, batch_shape, found.context)
        return model.to_user(drawn)

    drawn = handlers.substitute(handlers.seed(program, key), substitute_fn=value)
    trace = handlers.trace(drawn).get_trace(*args, **kwargs)
    return {
        name: jnp.asarray(site["value"]) for name, site in trace.items() if site["type"] == "sample"
    }


def _look(key_directions: Array, target: Target, values: Values, quantities: Any) -> Values:
    """Everything that is ranked, at one value of the latent sites."""
    trace = run_program(target.program, target.args, target.kwargs, values)
    sites = values | {name: trace[name]["value"] for name in target.sites.deterministic}
    observed = (trace[name] for name in target.sites.observed)
    terms = (
        jnp.sum(site["fn"].log_prob(site["value"]))
        for site in observed
        if not is_exact(site["fn"])  # without noise there is no density
    )
    found = {"log_likelihood": sum(terms, jnp.zeros(()))}
    wanted = {} if quantities is None else quantities(sites)
    if not isinstance(wanted, dict):
        raise TypeError(f"quantities returned {type(wanted).__name__}; it must return a dict.")
    for number, (name, x) in enumerate(sorted(sites.items())):
        x = jnp.asarray(x)
        if x.size > LARGE:
            key = jax.random.fold_in(key_directions, number)
            directions = jax.random.normal(key, (LARGE, x.size)) / math.sqrt(x.size)
            name, x = f"{name}_directions", directions @ jnp.ravel(x).astype(float)
        found = _add(found, name, x)
    for name, x in wanted.items():
        found = _add(found, name, jnp.asarray(x))
    return found


def _add(found: Values, name: str, value: Array) -> Values:
    if name in found:
        raise ValueError(f"two quantities are called {name!r}; rename one of them.")
    return {**found, name: value}


def _rank(key: Array, values: Array) -> Array:
    """Rank of the first row among the others; ties are broken at random."""
    truth, draws = values[0], values[1:]
    below, ties = (draws < truth).sum(axis=0), (draws == truth).sum(axis=0)
    return below + jax.random.randint(key, truth.shape, 0, ties + 1)
