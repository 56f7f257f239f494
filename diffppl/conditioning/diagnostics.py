"""Diagnostics of a run, with warnings that state the figures and the remedy."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..arviz import pareto_k
from ..model.ancestral import ancestral
from .method import AbstractMethod, Draws
from .target import Target
from .twists import Isotropic, Mixed, MomentMatching
from .twists.normal import MAX_DENSE

MIN_EFFECTIVE = 10
"""Effective sample size below which the particles count as collapsed: the draws then have few
distinct ancestors, and the estimated error of the evidence is unreliable."""

MAX_SPREAD = 1.0
"""Standard deviation of log Z between chains, in nats, above which the standard error of the mean
of Z is unreliable: for four chains with normal log Z of that deviation, the mean is off by five
standard errors in 4 % of runs."""

MAX_EXCLUDED = 0.01
"""Largest share of the particles that a twist may exclude as impossible before t = 0."""

MAX_TAIL, MIN_TAIL, EVEN = 1.0, 100, 0.9
"""Pareto k-hat above which the mean of the tail does not exist (Vehtari et al. 2024); number of
weights below which no tail is fitted; and ratio of effective sample size to number of weights from
which the tail is negligible."""

_MAX_SIZE = 5.0  # root mean square of draws, relative to that of the prior, or to 1 in model units
_NUM_PRIOR_DRAWS = 32


class Fault(NamedTuple):
    """A problem detected in a run: a short summary, and a warning with its remedy.

    The warning is empty where only the evidence is unreliable.
    """

    summary: str
    warning: str


def tail_indices(draws: Draws, target: Target) -> np.ndarray:
    """Return Pareto k-hat of each chain's final weights; NaN without any or with discrete sites."""
    log_weights = np.asarray(draws.log_weights)
    if target.sites(discrete=True):
        return np.full(log_weights.shape[:-1], np.nan)
    return pareto_k(log_weights)


def find_faults(
    draws: Draws, target: Target, method: AbstractMethod, nan_sites: list[str]
) -> list[Fault]:
    """Return the problems of a run, such as collapsed particles, NaN weights or infinite evidence.

    Args:
        draws: draws of all chains.
        target, method: those of the run.
        nan_sites: sites whose log-density is NaN at some draw.
    """
    return [
        *_isotropic_covariance(target, method),
        *_heavy_tail(draws, target),
        *_collapse(draws, target),
        *_nan_weights(draws, target, nan_sites),
        *_excluded_particles(draws, target),
        *_unreliable_evidence(draws),
    ]


def _isotropic_covariance(target: Target, method: AbstractMethod) -> Iterator[Fault]:
    """Report an isotropic covariance of many observations.

    Diagnostics of the particles do not detect it, since all are guided to the same wrong region:
    for 64 numbers of mixtures in 64 dimensions the evidence was 3.9 nats too low, at effective
    sample sizes of 30 and more, and Pareto k-hat near 0.
    """
    twist = getattr(method, "twist", None)
    twist = twist.real if isinstance(twist, Mixed) else twist
    if isinstance(twist, MomentMatching) and isinstance(twist.covariance, Isotropic):
        num = target.num_observed()
        if num > MAX_DENSE:
            yield Fault(f"the covariance of {num} observed numbers is assumed Isotropic()", "")


def _heavy_tail(draws: Draws, target: Target) -> Iterator[Fault]:
    weights = np.exp(np.asarray(draws.log_weights, np.float64))
    num = weights.shape[-1]
    if num < MIN_TAIL or np.median(1 / np.sum(weights**2, axis=-1)) >= EVEN * num:
        return
    tail = float(np.median(tail_indices(draws, target)))
    if tail > MAX_TAIL:
        yield Fault(
            f"the final weights have a Pareto k-hat of {tail:.2f}",
            f"the final weights are heavy-tailed (Pareto k-hat {tail:.2f}; above 0.7 a mean is "
            "unreliable, above 1 it does not exist), so the evidence is probably too low and its "
            "error too small. Use another twist, more steps of the chain, or more particles.",
        )


def _collapse(draws: Draws, target: Target) -> Iterator[Fault]:
    """Report an effective sample size that is too small."""
    if "ess" not in draws.step_stats:
        return
    ess = np.asarray(draws.step_stats["ess"])
    chain, step = np.unravel_index(np.argmin(ess), ess.shape)
    if ess[chain, step] >= MIN_EFFECTIVE:
        return
    when = _when(target, int(step))
    if step == 0:
        remedy = (
            "Few particles have weight under the prior of the latents and the first twist: use "
            "more particles, or a prior closer to the posterior."
        )
    else:
        remedy = "Use more particles, another twist, or more steps of the chain."
    yield Fault(
        f"collapsed at {when}",
        f"the particles collapsed: in chain {chain} the effective sample size fell to "
        f"{ess[chain, step]:.1f} at {when}. {remedy}",
    )


def _nan_weights(draws: Draws, target: Target, nan_sites: list[str]) -> Iterator[Fault]:
    """Report weights that were NaN."""
    largest, when = _largest_share(draws, target, "nan_share")
    if largest > 0:
        where = f" (site {', '.join(map(repr, nan_sites))})" if nan_sites else ""
        yield Fault(
            f"{100 * largest:.2g} % of the weights NaN at {when}",
            f"up to {100 * largest:.2g} % of the weights were NaN, at {when}{where}, and were set "
            "to zero. Check for parameters outside their range, such as a negative scale, at some "
            "values of the latent sites.",
        )


def _excluded_particles(draws: Draws, target: Target) -> Iterator[Fault]:
    """Report particles of real data that the twist excluded before t = 0, where it is exact."""
    largest, when = _largest_share(draws, target, "excluded_share", exact_steps=1)
    if target.sites(discrete=False) and largest > MAX_EXCLUDED:
        yield Fault(
            f"{100 * largest:.2g} % of the particles excluded at {when}",
            f"up to {100 * largest:.2g} % of the particles were excluded at {when}, because the "
            "observations are impossible at their E[x_0 | x_t]. They may be possible at other x_0, "
            "so the evidence may be too low. Use twist=Quadrature() for one or two numbers, or a "
            "likelihood without a hard cutoff.",
        )


def _largest_share(
    draws: Draws, target: Target, name: str, exact_steps: int = 0
) -> tuple[float, str]:
    """Return the largest value of a step statistic, and its time; 0 without the statistic.

    Args:
        draws, target: of the run.
        name: of the statistic.
        exact_steps: number of steps at the end that do not count.
    """
    share = np.asarray(draws.step_stats.get(name, np.zeros((0, 0))))
    share = share[:, : share.shape[1] - exact_steps]
    if not share.size:
        return 0.0, ""
    step = np.unravel_index(np.nanargmax(share), share.shape)[1]
    return float(np.nanmax(share)), _when(target, int(step))


def _unreliable_evidence(draws: Draws) -> Iterator[Fault]:
    """Report evidence that is infinite, or differs between chains."""
    log_z = np.asarray(draws.log_evidence, np.float64)
    finite = log_z[np.isfinite(log_z)]
    spread = float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0
    if spread > MAX_SPREAD:
        yield Fault(
            f"log evidence differs by {spread:.2g} nats between chains",
            f"the log evidence differs by {spread:.2g} nats between chains, so the largest "
            "dominates their mean, whose standard error is unreliable. Use more particles, "
            "another twist, or more steps of the chain.",
        )
    if np.any(np.isinf(log_z)):
        yield Fault(
            "no particle is compatible with the observations",
            "the evidence is not finite: no particle is compatible with the observations. "
            "Check that they are possible under the program.",
        )


def _when(target: Target, step: int) -> str:
    """Return the time of an entry of `Draws.step_stats`: from T to 0 for each stage."""
    num_steps = target.num_steps  # entries per stage; x_T of the first stage is entry 0
    stage = max(step - 1, 0) // num_steps
    t = num_steps if step == 0 else num_steps - 1 - (step - 1) % num_steps
    if target.structure.num_stages == 1:
        return f"t = {t}"
    return f"t = {t} of site {', '.join(map(repr, target.sites(stage)))}"


def divergence(
    make_key: Callable[[], Array],
    target: Target,
    method: AbstractMethod,
    name: str,
    lost: float,
    size: float,
) -> str | None:
    """Return a warning if draws are not finite, or far larger than those of the prior; else None.

    Args:
        make_key: returns the key for draws of the prior; called only if these are required.
        target, method: those of the run.
        name: name of a diffusion site.
        lost: share of its numbers that are not finite.
        size: root mean square of its draws in model units.
    """
    if lost > 0:
        what = f"{100 * lost:.3g} % of the numbers at site {name!r} are not finite"
    elif size <= _MAX_SIZE or name in target.sites(discrete=True):
        return None
    else:
        prior = float(_prior_size(make_key(), target, name))
        if size <= _MAX_SIZE * prior:
            return None
        what = f"draws at site {name!r} are {size / prior:.3g} times as large as those of its prior"
    return (
        f"{what}: {method!r} diverges where its guidance is too strong for a step of the chain. "
        "Use MomentMatching(), more steps, or TwistedSMC(), which discards such particles."
    )


def root_mean_square(x: Array) -> Float[Array, ""]:
    """Return the root mean square, scaled by the largest entry so that no square overflows."""
    largest = jnp.maximum(jnp.max(jnp.abs(x)).astype(float), 1e-30)
    return largest * jnp.sqrt(jnp.mean((x / largest) ** 2))


@eqx.filter_jit
def _prior_size(key: Array, target: Target, name: str) -> Float[Array, ""]:
    shape, model = target.structure.shapes[name], target.models[name]
    batch = shape[: len(shape) - len(model.event_shape)]  # of plates
    draws = ancestral(key, model, (_NUM_PRIOR_DRAWS, *batch), target.contexts[name])
    return root_mean_square(draws)
