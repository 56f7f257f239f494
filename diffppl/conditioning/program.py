"""Execution of a NumPyro program with values of its unobserved sites supplied by the caller.

`execute` runs the program once under effect handlers and returns its trace. Unsupported statements
raise an error that names the site: `numpyro.param`, subsampled plates, randomness outside of sample
sites, a diffusion model inside another distribution, and so on.
"""

from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro import handlers
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from numpyro.primitives import Messenger

from ..model.distribution import DiffusionDistribution
from .arguments import Arguments

Program = Callable[..., object]
Values = dict[str, Array]
Site = dict[str, Any]
Trace = dict[str, Site]
Fill = Callable[[Site], Array | None]
"""Function that returns the value of an unobserved site, or None to draw it."""


def execute(
    key: Array,
    program: Program,
    arguments: Arguments,
    inputs: PyTree,
    fill: Fill,
    *,
    predict: bool = False,
) -> Trace:
    """Execute a program once and return its trace.

    Args:
        key: for sites for which `fill` returns None. Keys that the program itself sets
            (`handlers.seed`) are not used.
        program: a NumPyro model.
        arguments: its arguments, and data to condition it on.
        inputs: values of `arguments.inputs`.
        fill: returns the values of unobserved sites.
        predict: whether to draw new values of the observed sites.

    Raises:
        TypeError, ValueError: the program cannot be conditioned; the message names the site.
    """
    (args, kwargs), data = arguments.restored(inputs)
    program = handlers.condition(program, data) if data else program
    with (
        arguments.evaluation(),
        handlers.trace() as trace,
        _FillSites(fill, key=key, predict=predict),
    ):
        try:
            program(*args, **kwargs)
        except ValueError as error:
            if "invalid scale parameter" not in str(error):
                raise
            raise ValueError(
                f"{error} Use numpyro.distributions.Delta(x[rows]) to observe without noise."
            ) from error
    return trace


def unwrapped(fn: Distribution) -> Distribution:
    """Return the distribution inside `expand`, plates and `to_event`."""
    while isinstance(fn, ExpandedDistribution | Independent):
        fn = fn.base_dist
    return fn


def diffusion_distribution(fn: Distribution) -> DiffusionDistribution | None:
    """Return the diffusion distribution of a site; None if it has another distribution."""
    found = unwrapped(fn)
    return found if isinstance(found, DiffusionDistribution) else None


def is_noiseless(fn: Distribution) -> bool:
    """Return whether a distribution is a Delta, masked or not."""
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def is_open(site: Site) -> bool:
    """Return whether the value of a site was supplied or drawn by `execute`."""
    return site["type"] == "sample" and site.get("filled", False)


def is_observed(site: Site) -> bool:
    """Return whether a site is observed; factors count as observed."""
    return site["type"] == "sample" and site["is_observed"]


def site_shape(site: Site) -> tuple[int, ...]:
    """Return the shape of a draw of a site: `sample_shape`, batch shape and event shape."""
    return (*site["kwargs"].get("sample_shape", ()), *site["fn"].shape())


@final
class _FillSites(Messenger):
    """Handler that sets unobserved sites, checks observed ones, and rejects other statements."""

    def __init__(self, fill: Fill, *, key: Array, predict: bool) -> None:
        super().__init__()
        self._fill, self._key, self._predict = fill, key, predict

    def process_message(self, msg: Site) -> None:
        match msg["type"]:
            case "sample" if not msg.get("_control_flow_done", False):
                self._sample(msg)
            case "control_flow":
                # `scan` and `cond` trace their bodies without outer handlers; only the substitute
                # stack is applied to the sites inside.
                msg["kwargs"]["rng_key"] = self._next_key()
                msg["kwargs"]["substitute_stack"].append(("substitute", self._in_control_flow))
            case "plate":
                _check_plate(msg)
            case "param" | "mutable":
                raise ValueError(
                    f"numpyro.{msg['type']} site {msg['name']!r} would keep its initial value: "
                    "a posterior treats parameters as fixed. Give it a prior by numpyro.sample, "
                    "or pass its value as an argument of the program."
                )
            case "prng_key":
                raise ValueError(
                    "numpyro.prng_key() draws randomness outside of the sample sites of the "
                    "program; draw it by numpyro.sample, so that it can be inferred."
                )

    def _next_key(self) -> Array:
        self._key, key = jax.random.split(self._key)
        return key

    def _sample(self, msg: Site) -> None:
        _check_distribution(msg)
        if msg["is_observed"]:
            msg["value"] = _observation(msg)
            keeps_value = isinstance(msg["fn"], dist.Unit) or is_noiseless(msg["fn"])
            if self._predict and not keeps_value:
                msg["value"] = msg["fn"].sample(self._next_key())
            return
        if msg["value"] is None and is_noiseless(msg["fn"]):
            msg["value"] = msg["fn"].sample(None)
        elif msg["value"] is None:
            value = self._fill(msg)
            if value is None:
                _check_proper(msg)
                value = msg["fn"].sample(self._next_key(), msg["kwargs"]["sample_shape"])
            msg["value"], msg["filled"] = value, True
        elif diffusion_distribution(msg["fn"]) is not None:
            raise ValueError(
                f"site {msg['name']!r} is a diffusion model whose value handlers.substitute sets; "
                "leave it free, and observe something that depends on it."
            )

    def _in_control_flow(self, site: Site) -> Array | None:
        """Return the value of a site inside NumPyro's `scan` or `cond`."""
        if diffusion_distribution(site["fn"]) is not None:
            raise ValueError(
                f"site {site['name']!r} is a diffusion model inside numpyro's scan or cond, which "
                "cannot be conditioned there; draw it before the loop, in a numpyro.plate, or "
                "write the loop in Python."
            )
        _check_distribution(site)
        if site["is_observed"]:
            return None
        site["filled"] = site["in_control_flow"] = True
        return self._fill(site)


# Checks -------------------------------------------------------------------------------------------


def _check_plate(msg: Site) -> None:
    size, subsample_size = msg["args"]
    if subsample_size is not None and subsample_size != size:
        raise ValueError(
            f"plate {msg['name']!r} takes a subsample of {subsample_size} of {size}, whose "
            "posterior is not that of the data; leave out subsample_size."
        )


def _check_distribution(msg: Site) -> None:
    """Check that no diffusion model is masked, scaled, or part of another distribution."""
    name, fn = msg["name"], msg["fn"]
    if diffusion_distribution(fn) is not None:
        if msg["scale"] is not None:
            raise ValueError(
                f"site {name!r} is a diffusion model under handlers.scale, which would raise its "
                "density to a power; scale the observations alone."
            )
        return
    if _contains_diffusion(fn):
        if isinstance(fn, MaskedDistribution):
            what = (
                "under a mask, which would remove its prior; mask the observations alone, or leave "
                "it unmasked and observe entries of it by dist.Delta(x[rows])"
            )
        else:
            what = f"inside {type(fn).__name__}, which has no reverse chain; " + (
                "draw it at a site of its own, numpyro.sample(name, model()), and transform its "
                "value in the program"
            )
        raise ValueError(f"site {name!r} has a diffusion model {what}.")


def _check_proper(msg: Site) -> None:
    fn = msg["fn"]
    while isinstance(fn, ExpandedDistribution | Independent | MaskedDistribution):
        fn = fn.base_dist
    if isinstance(fn, dist.ImproperUniform):
        raise ValueError(f"site {msg['name']!r} has an improper prior; give it a proper one.")


def _contains_diffusion(value: object) -> bool:
    if isinstance(value, DiffusionDistribution):
        return True
    if isinstance(value, Distribution):
        return any(_contains_diffusion(part) for part in vars(value).values())
    if isinstance(value, list | tuple):
        return any(_contains_diffusion(part) for part in value)
    return False


def _observation(msg: Site) -> Array:
    """Return the observed value as an array, after checks of its type, dtype and shape."""
    name, fn, value = msg["name"], msg["fn"], msg["value"]
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"the observation at site {name!r} is a masked array, whose mask would be dropped; "
            "pass obs=y.filled(...) under numpyro.handlers.mask(mask=~y.mask)."
        )
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except ValueError as error:  # a ragged list
            raise TypeError(f"the observation at site {name!r} is not an array: {error}.") from None
        if value.dtype.kind not in "biuf":
            raise TypeError(
                f"the observation at site {name!r} has dtype {value.dtype}; it must be an array "
                "of numbers."
            )
    expected = fn.shape()
    try:
        shape = jnp.broadcast_shapes(value.shape, expected)
    except ValueError:
        shape = None
    # Mutual broadcasting, as of (3, 1) with (3,), would count every value several times.
    if shape is None or shape not in (value.shape, expected):
        how = "do not broadcast" if shape is None else f"would broadcast to {shape}"
        raise ValueError(
            f"the observation at site {name!r} has shape {value.shape} and its distribution has "
            f"shape {expected}, which {how}; give both the same shape."
        )
    return jnp.asarray(value)
