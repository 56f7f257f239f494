"""The result of simulation-based calibration: ranks, p-values and coverages."""

from typing import NamedTuple, final

import equinox as eqx
import numpy as np

from ..arviz import ArvizData, from_ranks
from ..checks.arguments import check_float
from ..checks.arrays import Numbers
from . import uniformity


class Coverage(NamedTuple):
    """Empirical coverage of central posterior intervals.

    Attributes:
        value: shape `(len(probs), *quantity_shape)`.
        standard_error: binomial standard error of `value` under calibration, shape `(len(probs),)`.
    """

    value: np.ndarray
    standard_error: np.ndarray


@final
class Calibration(eqx.Module):
    """The result of `calibrate`.

    Attributes:
        ranks: ranks of the simulated value among the draws, 0..`num_samples`, by name of the
            quantity, shape `(num_simulations, *quantity_shape)`.
        num_samples: posterior draws per simulation.
        method: name of the method's class.
        num_collapsed: number of simulations in which the particles collapsed.
    """

    ranks: dict[str, np.ndarray]
    num_samples: int = eqx.field(static=True)
    method: str = eqx.field(static=True)
    num_collapsed: int = eqx.field(static=True, default=0)

    @property
    def num_simulations(self) -> int:
        """Number of simulated data sets."""
        return len(next(iter(self.ranks.values())))

    def pvalues(self) -> dict[str, np.ndarray]:
        """Return the p-value of the uniformity test for each coordinate separately.

        See `diffppl.calibration.uniformity`; the p-values are exact to 1e-12.
        """
        return {name: uniformity.pvalues(r, self.num_samples) for name, r in self.ranks.items()}

    @property
    def pvalue(self) -> float:
        """Joint p-value of all quantities, with the Bonferroni correction."""
        return _bonferroni(np.concatenate([np.ravel(p) for p in self.pvalues().values()]))

    def coverage(self, probs: Numbers = (0.5, 0.8, 0.9, 0.95)) -> dict[str, Coverage]:
        """Return the empirical coverage of the central interval of each probability.

        A rank on the boundary of an interval counts fractionally, so that the expected coverage of
        an exact posterior equals the nominal probability for any number of draws.

        Args:
            probs: nominal probabilities, between 0 and 1.

        Raises:
            ValueError: `probs` is not a sequence of numbers between 0 and 1.
        """
        inside = np.asarray(probs, np.float64)
        if inside.ndim != 1 or not np.all((inside > 0) & (inside < 1)):
            raise ValueError(f"probs={probs!r} must be probabilities between 0 and 1.")
        error = np.sqrt(inside * (1 - inside) / self.num_simulations)
        # Rank r is the cell [r, r + 1] / (L + 1) of (0, 1); its share is its overlap with the
        # interval, in units of the cell.
        cells = np.arange(self.num_samples + 2) / (self.num_samples + 1)
        low, high = (1 - inside[:, None]) / 2, (1 + inside[:, None]) / 2
        shares = np.diff(np.clip(cells, low, high), axis=1) * (self.num_samples + 1)
        return {name: Coverage(shares[:, r].mean(axis=1), error) for name, r in self.ranks.items()}

    def ecdf_difference(self) -> dict[str, np.ndarray]:
        """Return the ECDF of the ranks minus the uniform CDF, at `band().position` (last axis)."""
        return {
            name: uniformity.ecdf_difference(r, self.num_samples) for name, r in self.ranks.items()
        }

    def band(self, prob: float = 0.95) -> uniformity.Band:
        """Return the simultaneous confidence band of `ecdf_difference` for one quantity."""
        prob = check_float("prob", prob, 0.0, 1.0)
        return uniformity.band(self.num_simulations, self.num_samples, prob)

    def to_arviz(self) -> ArvizData:
        """Convert to ArviZ data with a group `prior_sbc`, the input of `plot_ecdf_pit` (ArviZ 1.x).

        Each rank is mapped to a uniform draw from its cell of (0, 1), the randomised *probability
        integral transform*. In ArviZ 0.x, use `plot_ecdf(values, pit=True, cdf=...)`.
        """
        return from_ranks(self.ranks, self.num_samples)

    def print_summary(self) -> None:
        """Print the p-value and the coverage (its mean over coordinates) of each quantity."""
        probs = (0.5, 0.8, 0.9, 0.95)
        coverage, pvalues = self.coverage(probs), self.pvalues()
        width = max(map(len, self.ranks)) + 6
        print(f"{self!r}\n{'':{width}}  p-value  " + "".join(f"{p:>8.0%}" for p in probs))
        for name, found in pvalues.items():
            label = name if found.ndim == 0 else f"{name} ({found.size})"
            means = coverage[name].value.reshape(len(probs), -1).mean(axis=1)
            print(
                f"{label:{width}}  {_bonferroni(found):7.4f}  "
                + "".join(f"{mean:8.3f}" for mean in means)
            )
        errors = next(iter(coverage.values())).standard_error
        print(f"{'standard error':{width + 11}}" + "".join(f"{error:8.3f}" for error in errors))

    def __repr__(self) -> str:
        collapsed = f", {self.num_collapsed} of them collapsed" * (self.num_collapsed > 0)
        return (
            f"Calibration({self.method}, {self.num_simulations} simulations of "
            f"{self.num_samples} draws{collapsed}, p-value {self.pvalue:.4f})"
        )


def _bonferroni(pvalues: np.ndarray) -> float:
    """Return the joint p-value of several tests."""
    return min(1.0, float(pvalues.min()) * pvalues.size)
