"""Whether to believe a run: its evidence, and warnings with the figures and the remedy."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from .method import Draws

FEWEST_EFFECTIVE = 10  # an effective sample size below this is called a collapse


class LogEvidence(NamedTuple):
    """log p(y) in nats, and its standard error; both NaN for a method that gives none.

    The error is that of the chain's own evidence. How far a chain of so many steps is from the
    distribution that the network was fit to is not in it: compare two values of `num_steps`. From
    four chains the error is itself known to a third; more chains tell it better.
    """

    value: float
    standard_error: float

    def __repr__(self) -> str:
        if math.isnan(self.value):
            return "none"
        return f"{self.value:.3f} ± {self.standard_error:.3f} nats"


def pooled_evidence(draws: Draws) -> LogEvidence:
    """The evidence over chains, and the larger of two errors.

    One is the spread between chains, the other what each chain's own genealogy says.
    """
    log_z = np.asarray(draws.log_evidence, dtype=np.float64)
    if np.any(np.isnan(log_z)):
        return LogEvidence(math.nan, math.nan)
    relative = np.exp(log_z - log_z.max()) if np.isfinite(log_z.max()) else np.ones_like(log_z)
    value = log_z.max() + np.log(relative.mean())
    shares = relative / relative.sum()
    within = np.sum(shares**2 * np.asarray(draws.evidence_variance))
    n = log_z.size
    between = np.sum((shares - 1 / n) ** 2) * n / (n - 1) if n > 1 else 0.0
    return LogEvidence(float(value), float(np.sqrt(max(within, between))))


def warn_of_collapse(step_stats: dict[str, Array], log_evidence: LogEvidence) -> None:
    """Warn of particles that died, and of observations that none of them explains."""
    if "ess" in step_stats:
        ess = np.asarray(step_stats["ess"])
        chain, step = np.unravel_index(np.argmin(ess), ess.shape)
        if ess[chain, step] < FEWEST_EFFECTIVE:
            t = ess.shape[1] - 1 - step
            if step == 0:
                remedy = (
                    "The prior of the other latents, or the first look at the observations, leaves "
                    "few of them alive: use more particles, or a prior nearer to the posterior."
                )
            else:
                remedy = "Use more particles, another twist, or more steps of the chain."
            warnings.warn(
                f"the particles collapsed: in chain {chain} the effective sample size fell to "
                f"{ess[chain, step]:.1f} at step t = {t}. {remedy}",
                stacklevel=4,
            )
    if math.isinf(log_evidence.value):
        warnings.warn(
            "the evidence is not finite: no particle agrees with the observations. Check that "
            "the observations are possible under the program.",
            stacklevel=4,
        )


def warn_of_lost_draws(share: Array, name: str) -> None:
    """Warn of draws that are not finite."""
    if float(share) > 0:
        warnings.warn(
            f"{100 * float(share):.3g} % of the numbers at site {name!r} are not finite: guidance "
            "that is too strong for its steps runs away. Use MomentMatching, more steps, or "
            "TwistedSMC, which drops such particles.",
            stacklevel=3,
        )
