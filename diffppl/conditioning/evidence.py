"""Evidence pooled over chains, with its error, and draws pooled in proportion to it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import final

import jax
import numpy as np
import scipy.stats
from jaxtyping import Array, Int

from .method import Draws

_LEVEL = 0.95  # of the interval


@final
@dataclasses.dataclass(frozen=True, repr=False)
class LogEvidence:
    """log p(y) in nats, with its Monte Carlo error.

    The error refers to the evidence of the *chain* in use. It includes neither the error of the
    fitted prior nor the discretisation error of the chain; to assess these, compare two fits and
    two values of `num_steps`.

    Attributes:
        value: log p(y); NaN for a method without an estimate.
        standard_error: of `value`, with the coverage of a normal standard error (68 %). It is based
            on Student's t with one degree of freedom fewer than there are chains, because few
            chains determine their spread only roughly.
        interval: 95 % interval of the same distribution.
        fault: why the value is unreliable; empty if no diagnostic found a problem.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    fault: str

    @property
    def is_trusted(self) -> bool:
        """Whether no diagnostic found a problem."""
        return not self.fault

    def __iter__(self) -> Iterator[float]:
        """Iterate over value and standard error: `value, error = posterior.log_evidence`."""
        return iter((self.value, self.standard_error))

    def __repr__(self) -> str:
        if math.isnan(self.value):
            return "none"
        if self.fault:
            return f"{self.value:.3f} nats, not to be trusted ({self.fault})"
        low, high = self.interval
        return f"{self.value:.3f} ± {self.standard_error:.3f} nats (95 %: {low:.3f} to {high:.3f})"


def pooled_evidence(draws: Draws, fault: str) -> LogEvidence:
    """Return the evidence pooled over chains, with the larger of two error estimates.

    One is the spread between chains, the other is the genealogical estimate within each.
    """
    log_z = np.asarray(draws.log_evidence, dtype=np.float64)
    nan = math.nan
    if np.any(np.isnan(log_z)):
        return LogEvidence(nan, nan, (nan, nan), "")
    shares, value = chain_weights(log_z)
    # Relative variances of the mean of Z, which are those of its logarithm to first order.
    within = float(np.sum(shares**2 * np.asarray(draws.evidence_variance)))
    n = log_z.size
    between = float(np.sum((shares - 1 / n) ** 2) * n / (n - 1)) if n > 1 else 0.0

    # The spread between n chains has n - 1 degrees of freedom.
    def quantile(p: float) -> float:
        normal = scipy.stats.norm.ppf(p) * math.sqrt(within)
        return float(max(normal, scipy.stats.t.ppf(p, max(n - 1, 1)) * math.sqrt(between)))

    half_width = quantile(0.5 + _LEVEL / 2)
    error = quantile(float(scipy.stats.norm.cdf(1)))
    return LogEvidence(value, error, (value - half_width, value + half_width), fault)


def chain_weights(log_evidence: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the share of each chain in the pooled evidence, and the logarithm of the latter."""
    largest = log_evidence.max()
    relative = (
        np.exp(log_evidence - largest) if np.isfinite(largest) else np.ones(log_evidence.shape)
    )
    return relative / relative.sum(), float(largest + np.log(relative.mean()))


# Draws over chains ------------------------------------------------------------------------------


def pooled_indices(
    key: Array, log_evidence: np.ndarray, num_samples: int
) -> Int[np.ndarray, "chains samples 2"]:
    """Return the (chain, draw) of each pooled draw, in proportion to the evidence of the chains.

    Chain c contributes a share Z_c / sum Z of all draws. It keeps up to `num_samples` of its own
    draws; the missing ones are replaced by surplus draws of other chains. Chains of equal evidence
    keep all of their draws.
    """
    num_chains = log_evidence.size
    indices = np.moveaxis(np.indices((num_chains, num_samples)), 0, -1).copy()
    if num_chains == 1 or np.any(np.isnan(log_evidence)):
        return indices
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    shares, _ = chain_weights(log_evidence.astype(np.float64))
    total = num_chains * num_samples
    # Systematic resampling: each count is its expectation, rounded without bias.
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
        replaced = rng.permutation(num_samples)[:missing]
        indices[c, replaced] = surplus[start : start + missing]
        start += missing
    return indices
