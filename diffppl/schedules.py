"""Noise schedules of a chain with `T = num_steps` steps.

A schedule is a decreasing sequence of log signal-to-noise ratios, from which the other quantities
follow without loss of precision at either end:

| symbol          | name                  | formula                              | shape    |
| --------------- | --------------------- | ------------------------------------ | -------- |
| lambda_t        | `log_snr`             | log(alpha_bar_t / (1 - alpha_bar_t)) | `(T+1,)` |
| alpha_bar_t     | `alpha_bar`           | sigmoid(lambda_t); alpha_bar_0 = 1   | `(T+1,)` |
| 1 - alpha_bar_t | `one_minus_alpha_bar` | sigmoid(-lambda_t)                   | `(T+1,)` |
| beta_t          | `beta`                | 1 - alpha_bar_t / alpha_bar_{t-1}    | `(T+1,)` |

All are indexed by `t = 0..T`; `t = 0` is the data (`log_snr` is infinite, `beta` is 0).

To add a schedule, write a function that returns a `Schedule`, or a final subclass of
`AbstractSchedule` if its levels are not fixed, and add a row to the tests' registry. What does not
belong here: the kind of noise. Schedules are shared by all processes, continuous and discrete.

References:
    Sohl-Dickstein et al. 2015, section 2.4.1 (reciprocal and learned rates).
    Ho et al. 2020 (linear); Nichol and Dhariwal 2021 (cosine); Kingma et al. 2021 (log-SNR).
"""

import abc
import math
import warnings
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .checks.arguments import check_float, check_instance, check_pair, check_size
from .checks.arrays import as_numbers

__all__ = [
    "AbstractSchedule",
    "Learned",
    "Schedule",
    "cosine",
    "linear",
    "log_snr_linear",
    "reciprocal",
    "sohl_dickstein",
]


class AbstractSchedule(eqx.Module):
    """Noise levels of a chain. Subclasses implement `num_steps` and `log_snr`."""

    num_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def log_snr(self) -> Float[Array, " levels"]:
        """Return the log signal-to-noise ratio at t = 0..T: decreasing, `+inf` at t = 0."""

    def log_alpha_bar(self) -> Float[Array, " levels"]:
        """Return log alpha_bar_t at t = 0..T."""
        return jax.nn.log_sigmoid(self.log_snr())

    def alpha_bar(self) -> Float[Array, " levels"]:
        """Return the signal's share of the variance at t = 0..T; `alpha_bar[0]` is 1."""
        return jax.nn.sigmoid(self.log_snr())

    def one_minus_alpha_bar(self) -> Float[Array, " levels"]:
        """Return 1 - alpha_bar_t at t = 0..T, without cancellation."""
        return jax.nn.sigmoid(-self.log_snr())

    def beta(self) -> Float[Array, " levels"]:
        """Return the diffusion rate of each step at t = 0..T; `beta[0]` is 0."""
        # By expm1: the difference of 1 and a ratio near 1 would cancel.
        log_alpha_bar = self.log_alpha_bar()
        return jnp.concatenate([jnp.zeros(1), -jnp.expm1(jnp.diff(log_alpha_bar))])

    def times(self, num_steps: int) -> np.ndarray:
        """Return the `num_steps + 1` times kept when the chain is respaced.

        They increase from 0 to T, evenly in t, and always contain t = 1, so that the fixed final
        step p(x_0 | x_1) is that of the original chain.
        """
        num_steps = check_size("num_steps", num_steps, least=None)
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(
                f"num_steps={num_steps} is not between 1 and the chain's own "
                f"{self.num_steps} steps; use at most {self.num_steps}."
            )
        if num_steps == 1 and self.num_steps > 1:
            raise ValueError("num_steps=1 cannot keep both level 1 and level T; use 2 or more.")
        kept = np.linspace(1, self.num_steps, num_steps).round().astype(np.int32)
        return np.concatenate([np.zeros(1, np.int32), kept])

    def respace(self, num_steps: int) -> "Schedule":
        """Return the schedule of `num_steps` of the noise levels (see `times`)."""
        return Schedule(self.log_snr()[self.times(num_steps)][1:])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_steps={self.num_steps})"


@final
class Schedule(AbstractSchedule):
    """Fixed schedule, such as `cosine(num_steps)` or one of the other functions returns.

    Args:
        log_snr: log signal-to-noise ratios at t = 1..T: decreasing, -inf allowed at T.
    """

    num_steps: int = eqx.field(static=True)
    _log_snr: Array

    def __init__(self, log_snr: ArrayLike) -> None:
        levels = as_numbers("log_snr", log_snr)
        if levels.ndim != 1 or levels.size == 0:
            raise ValueError(f"log_snr has shape {levels.shape}; it needs shape (num_steps,).")
        is_traced = isinstance(levels, Tracer)
        if not is_traced:
            check_levels(np.asarray(levels))
        self.num_steps = levels.size
        concatenate = jnp.concatenate if is_traced else np.concatenate
        self._log_snr = jnp.asarray(concatenate([np.full(1, np.inf), levels]), dtype=float)

    def log_snr(self) -> Array:
        return self._log_snr


def linear(
    num_steps: int, beta_start: float | None = None, beta_end: float | None = None
) -> Schedule:
    """Linear schedule of beta_t (Ho et al. 2020, section 4, there with T = 1000).

    The defaults have the customary scaling by `1000 / num_steps`, so that short chains also end in
    noise.
    """
    num_steps = check_size("num_steps", num_steps)
    start = min(0.1 / num_steps, 0.5) if beta_start is None else beta_start
    end = min(20.0 / num_steps, 0.999) if beta_end is None else beta_end
    start = check_float("beta_start", start, 0.0, 1.0)
    end = check_float("beta_end", end, 0.0, 1.0)
    if start > end:
        raise ValueError(f"beta_start={start:g} must not be more than beta_end={end:g}.")
    return _from_beta(np.linspace(start, end, num_steps))


def cosine(num_steps: int, offset: float = 0.008, beta_max: float = 0.999) -> Schedule:
    """Squared-cosine schedule of alpha_bar_t (Nichol and Dhariwal 2021, equation 17)."""
    num_steps = check_size("num_steps", num_steps)
    offset = check_float("offset", offset, 0.0, closed=True)
    beta_max = check_float("beta_max", beta_max, 0.0, 1.0)
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2
    log_cosine = 2 * np.log(np.cos(angle))
    return _from_beta(np.minimum(-np.expm1(np.diff(log_cosine)), beta_max))


def log_snr_linear(
    num_steps: int, noise_to_signal: tuple[float, float] = (0.01, 100.0)
) -> Schedule:
    """Linear schedule of the log signal-to-noise ratio: noise levels in equal ratios.

    Args:
        num_steps: T.
        noise_to_signal: ratios of noise to signal *amplitude*, sqrt((1 - alpha_bar) / alpha_bar),
            at t = 1 and t = T. For posteriors the latter should be about ten times the typical
            length of a (scaled) datum.

    References:
        Kingma et al. 2021, "Variational Diffusion Models", section 3.2.
    """
    num_steps = check_size("num_steps", num_steps)
    low, high = check_pair("noise_to_signal", noise_to_signal)
    return Schedule(-2 * np.linspace(np.log(low), np.log(high), num_steps))


def reciprocal(num_steps: int) -> Schedule:
    """Reciprocal schedule beta_t = 1 / (T - t + 1): each step removes 1/T of the original signal.

    alpha_bar_t = (T - t) / T, so no signal is left after the last step (beta_T = 1 exactly). The
    paper's schedule for binary data (Sohl-Dickstein et al. 2015, section 2.4.1).
    """
    num_steps = check_size("num_steps", num_steps)
    steps = np.arange(1, num_steps + 1)
    with np.errstate(divide="ignore"):  # log 0 at t = T
        return Schedule(np.log((num_steps - steps) / steps))


def sohl_dickstein(num_steps: int, beta_1: float = 1e-3) -> Schedule:
    """Fixed schedule of the public code of the 2015 paper (there with T = 1000).

    beta_t = floor_t + sigmoid(logit(1/linspace(T, 2, T)_t)) (1 - floor_t - 1e-5), with a floor
    of 1e-6, to which `beta_1` is added at t = 1.
    """
    num_steps = check_size("num_steps", num_steps)
    beta_1 = check_float("beta_1", beta_1, 0.0, 0.5, closed=(True, False))
    floor = np.full(num_steps, 1e-6)
    floor[0] += beta_1
    baseline = 1 / np.linspace(num_steps, 2, num_steps)
    return _from_beta(floor + baseline * (1 - floor - 1e-5))


def _from_beta(beta: np.ndarray) -> Schedule:
    """Return the schedule for beta_1..beta_T, computed from log alpha_bar in float64."""
    log_alpha_bar = np.cumsum(np.log1p(-beta.astype(np.float64)))
    return Schedule(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


@final
class Learned(AbstractSchedule):
    """Schedule learned with the network, by gradient ascent on the ELBO.

    beta_1 is fixed: it sets the smallest variance of the model, and learning it overfits. The later
    levels decrease by softplus(`raw_drops`), so they are monotone by construction. Gaussian
    processes only: the gradient requires reparameterised ("frozen") noise.

    References:
        Sohl-Dickstein et al. 2015, section 2.4.1.
    """

    num_steps: int = eqx.field(static=True)
    log_snr_1: Array
    raw_drops: Array

    def __init__(self, num_steps: int, beta_1: float, noise_to_signal: float = 30.0) -> None:
        """Initialise linearly in log-SNR, from `beta_1` to `noise_to_signal` at t = T."""
        self.num_steps = num_steps = check_size("num_steps", num_steps, least=2)
        beta_1 = check_float("beta_1", beta_1, 0.0, 1.0)
        noise_to_signal = check_float("noise_to_signal", noise_to_signal, 0.0)
        first = np.log1p(-beta_1) - np.log(beta_1)
        drop = (first + 2 * np.log(noise_to_signal)) / (num_steps - 1)
        if drop <= 0:
            raise ValueError(
                f"noise_to_signal={noise_to_signal} is less noise than beta_1={beta_1} "
                "has at t = 1; raise it."
            )
        check_levels(first - drop * np.arange(num_steps))
        self.log_snr_1 = jnp.asarray(first, dtype=float)
        # The inverse of softplus.
        self.raw_drops = jnp.full(num_steps - 1, np.log(np.expm1(drop)), dtype=float)

    def log_snr(self) -> Array:
        first = jax.lax.stop_gradient(self.log_snr_1)
        later = first - jnp.cumsum(jax.nn.softplus(self.raw_drops))
        return jnp.concatenate([jnp.full(1, jnp.inf), first[None], later])


def check_schedule(schedule: object) -> None:
    """Raise a TypeError unless the argument `schedule` is a schedule."""
    remedy = ", such as schedules.cosine(num_steps=100)"
    check_instance("schedule", schedule, AbstractSchedule, remedy=remedy)


def check_levels(log_snr: np.ndarray) -> None:
    """Raise a ValueError for levels t = 1..T that are out of range or do not decrease."""
    info = jnp.finfo(jnp.result_type(float))
    # Beyond it, sqrt(alpha_bar) and sqrt(1 - alpha_bar) differ by more than a factor of 1 / eps, so
    # adding the smaller of signal and noise to the larger has no effect.
    limit = -2 * math.log(info.eps)
    levels = np.asarray(log_snr, info.dtype).astype(np.float64)
    inside = np.abs(levels) <= limit
    inside[-1] |= levels[-1] < 0  # the last level may have no signal at all
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        falls = -np.diff(levels) > 8 * info.eps * np.maximum(np.abs(levels[:-1]), 1.0)
    limits = f"lie between -{limit:.3g} and {limit:.3g} for {info.dtype}, or below at t = T alone"
    for good, what in ((inside, limits), (falls, "fall at each step, by more than rounding")):
        if not np.all(good):
            t = int(np.argmin(good))
            found = ", ".join(f"{level:.7g}" for level in levels[t : t + 2])
            raise ValueError(f"log_snr must {what}. From t = {t + 1} on it is {found}.")


# Until the next release: the classes that the functions replace.
RENAMED = {
    "Cosine": cosine,
    "FromLogSNR": Schedule,
    "Linear": linear,
    "LogSNRLinear": log_snr_linear,
    "Reciprocal": reciprocal,
    "SohlDickstein": sohl_dickstein,
}


def __getattr__(name: str) -> Any:
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    new = RENAMED[name]
    warnings.warn(
        f"schedules.{name} is now schedules.{new.__name__}; the next release drops the old name.",
        DeprecationWarning,
        stacklevel=2,
    )
    return new
