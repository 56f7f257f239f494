"""The compiled parts of a `Posterior`: each traces once for new keys, data and settings."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers

from ..entry import left_at_the_end
from ..progress import tick
from .method import AbstractMethod, Draws
from .program import Program, Sites, Values, predictive, run_program
from .target import Target


class Ends(NamedTuple):
    """What to report of a run, and to warn of.

    `left` is what the last level of each site's chain keeps of its draws, `lost` the share of its
    numbers that are not finite, `calls` the evaluations of the network in one chain.
    """

    left: dict[str, Array]
    lost: dict[str, Array]
    calls: Array


@eqx.filter_jit
def run_chains(
    key: Array,
    program: Program,
    method: AbstractMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_chains: int,
    num_samples: int,
    *,
    show: bool,
) -> tuple[Draws, Values, Ends]:
    """All chains, one after the other, and their draws by site name in the user's units."""
    target = Target(program, args, kwargs, method.num_steps)
    advance = tick if show else lambda: None

    def chain(key: Array) -> tuple[Draws, Values]:
        draws = method.draw(key, target, num_samples, advance)
        return draws, jax.vmap(lambda x_0, u: by_name(target, x_0, u))(draws.x_0, draws.latents)

    draws, samples = jax.lax.map(chain, jax.random.split(key, num_chains))
    lost = {name: jnp.mean(~jnp.isfinite(x)) for name, x in draws.x_0.items()}
    calls = jnp.asarray(method.num_denoiser_calls(target, num_samples), float)
    return draws, samples, Ends(target.map_sites(left_at_the_end, draws.x_0), lost, calls)


def by_name(target: Target, x_0: Values, latents: Array) -> Values:
    """One draw by site name, in the user's units, with the program's deterministic sites."""
    values = {**target.to_user(x_0), **target.constrain(latents)}
    if target.sites.deterministic:
        trace = run_program(target.program, target.args, target.kwargs, values)
        values |= {name: trace[name]["value"] for name in target.sites.deterministic}
    return values


@eqx.filter_jit
def predict(
    key: Array,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: Sites,
    values: Values,
) -> Values:
    """One new draw of every observed site for each posterior draw, `(chains, draws, ...)`."""
    draw = predictive(program, args, kwargs, sites)
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    keys = jax.random.split(key, (num_chains, num_samples))
    return jax.vmap(jax.vmap(draw))(keys, values)


@eqx.filter_jit
def log_likelihoods(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites, values: Values
) -> Values:
    """Log-density of every observation at each posterior draw, for sites that have one."""

    def single(values: Values) -> Values:
        trace = run_program(program, args, kwargs, values)
        return {
            name: trace[name]["fn"].log_prob(trace[name]["value"])
            for name in sites.observed
            if name not in sites.exact and not isinstance(trace[name]["fn"], dist.Unit)
        }

    return jax.vmap(jax.vmap(single))(values)


@eqx.filter_jit
def draw_prior(
    key: Array,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: tuple[str, ...],
    num: int,
) -> Values:
    """Draws of the latent sites from the program's prior; ancestral at the diffusion sites."""

    def single(key: Array) -> Values:
        trace = handlers.trace(handlers.seed(program, key)).get_trace(*args, **kwargs)
        return {name: trace[name]["value"] for name in names}

    return jax.vmap(single)(jax.random.split(key, num))


def observed_data(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites
) -> Values:
    """The values of the observed sites."""
    trace = run_program(program, args, kwargs, {})
    return {
        name: jnp.asarray(trace[name]["value"])
        for name in sites.observed
        if np.size(trace[name]["value"])
    }
