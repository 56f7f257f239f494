"""The evidence of several chains: its value, its error, and draws that count by it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import final

import jax
import numpy as np
import scipy.stats
from jaxtyping import Array, Int

from .method import Draws

_LEVEL = 0.95


@final
@dataclasses.dataclass(frozen=True, repr=False)
class LogEvidence:
    """log p(y) in nats, with its Monte Carlo error.

    The error is that of the evidence of the *chain* in use. Neither the distance of the fitted
    prior from the distribution of the data nor that of a chain of so many steps from its limit is
    in it; compare two values of `num_steps`, and two fits.

    Attributes:
        value: log p(y); NaN for a method that gives none.
        standard_error: of `value`. It covers as often as that of a normal distribution (68 % within
            one of it): few chains determine their own spread only roughly, and Student's t with one
            degree of freedom less than there are chains counts for that.
        interval: 95 % of the same distribution.
        fault: why the value is not to be trusted; empty if nothing speaks against it.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    fault: str

    @property
    def is_trusted(self) -> bool:
        """Whether no diagnostic speaks against the value."""
        return not self.fault

    def __iter__(self) -> Iterator[float]:
        """The value and its standard error, as in `value, error = posterior.log_evidence`."""
        return iter((self.value, self.standard_error))

    def __repr__(self) -> str:
        if math.isnan(self.value):
            return "none"
        if self.fault:
            return f"{self.value:.3f} nats, not to be trusted ({self.fault})"
        low, high = self.interval
        return f"{self.value:.3f} ± {self.standard_error:.3f} nats (95 %: {low:.3f} to {high:.3f})"


def pooled_evidence(draws: Draws, fault: str) -> LogEvidence:
    """The evidence over chains, and the larger of two errors.

    One is the spread between chains, the other comes from the genealogy within each.
    """
    log_z = np.asarray(draws.log_evidence, dtype=np.float64)
    nan = math.nan
    if np.any(np.isnan(log_z)):
        return LogEvidence(nan, nan, (nan, nan), "")
    shares, value = chain_weights(log_z)
    within = float(np.sum(shares**2 * np.asarray(draws.evidence_variance)))
    n = log_z.size
    between = float(np.sum((shares - 1 / n) ** 2) * n / (n - 1)) if n > 1 else 0.0

    # Quantiles of the two, the spread between n chains having n - 1 degrees of freedom.
    def reach(p: float) -> float:
        normal = scipy.stats.norm.ppf(p) * math.sqrt(within)
        return float(max(normal, scipy.stats.t.ppf(p, max(n - 1, 1)) * math.sqrt(between)))

    wide = reach(0.5 + _LEVEL / 2)
    error = reach(float(scipy.stats.norm.cdf(1)))
    return LogEvidence(value, error, (value - wide, value + wide), fault)


def chain_weights(log_evidence: np.ndarray) -> tuple[np.ndarray, float]:
    """The share of each chain in the pooled evidence, and its logarithm."""
    largest = log_evidence.max()
    relative = (
        np.exp(log_evidence - largest) if np.isfinite(largest) else np.ones(log_evidence.shape)
    )
    return relative / relative.sum(), float(largest + np.log(relative.mean()))


# Draws over chains ------------------------------------------------------------------------------


def pooled_indices(
    key: Array, log_evidence: np.ndarray, num_samples: int
) -> Int[np.ndarray, "chains samples 2"]:
    """Which (chain, draw) fills each place, so that chains count by their evidence.

    Chain c should hold a share Z_c / sum Z of all draws. It keeps that many of its own, up to
    `num_samples`; what the others lack is filled with draws of the chains that have more. Chains of
    equal evidence keep all of their draws.
    """
    num_chains = log_evidence.size
    every = np.moveaxis(np.indices((num_chains, num_samples)), 0, -1).copy()
    if num_chains == 1 or np.any(np.isnan(log_evidence)):
        return every
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    shares, _ = chain_weights(log_evidence.astype(np.float64))
    total = num_chains * num_samples
    # Systematic: the number of draws of each chain is its expectation, rounded without bias.
    ends = np.floor(np.cumsum(shares) * total + rng.uniform())
    counts = np.diff(ends, prepend=0).astype(int)
    counts[-1] += total - counts.sum()
    surplus = np.concatenate(
        [
            np.stack([np.full(n, c), rng.permutation(num_samples)[np.arange(n) % num_samples]], -1)
            for c, n in enumerate(np.maximum(counts - num_samples, 0))
        ]
    )
    rng.shuffle(surplus)
    start = 0
    for c, missing in enumerate(np.maximum(num_samples - counts, 0)):
        places = rng.permutation(num_samples)[:missing]
        every[c, places] = surplus[start : start + missing]
        start += missing
    return every
