"""What a simulation-based calibration found: ranks, and what to make of them."""

from typing import Any, NamedTuple, final

import equinox as eqx
import numpy as np

from . import uniformity


class Coverage(NamedTuple):
    """How often central intervals hold the truth.

    Attributes:
        value: shape `(len(probs), ...)`, then the quantity's own.
        standard_error: what `value` scatters by if all is well, shape `(len(probs),)`.
    """

    value: np.ndarray
    standard_error: np.ndarray


@final
class Calibration(eqx.Module):
    """What `calibrate` returns.

    Attributes:
        ranks: of the truth among the draws, 0..`num_samples`, shape `(num_simulations, ...)` for
            every quantity by name.
        num_samples: draws of each simulation.
        method: its name.
        num_collapsed: in how many simulations the particles collapsed.
    """

    ranks: dict[str, np.ndarray]
    num_samples: int = eqx.field(static=True)
    method: str = eqx.field(static=True)
    num_collapsed: int = eqx.field(static=True, default=0)

    @property
    def num_simulations(self) -> int:
        """How many data sets were simulated."""
        return len(next(iter(self.ranks.values())))

    def pvalues(self) -> dict[str, np.ndarray]:
        """How surprising the ranks are if they are uniform, for each coordinate by itself.

        The test is that of `diffppl.calibration.uniformity`, whose p-values are exact to 1e-12.
        """
        return {name: uniformity.pvalues(r, self.num_samples) for name, r in self.ranks.items()}

    @property
    def pvalue(self) -> float:
        """The smallest p-value times the number of all (Bonferroni): one verdict on everything."""
        found = np.concatenate([np.ravel(p) for p in self.pvalues().values()])
        return min(1.0, float(found.min()) * found.size)

    def coverage(self, probs: Any = (0.5, 0.8, 0.9, 0.95)) -> dict[str, Coverage]:
        """How often the central interval of each probability holds the truth.

        A rank at the edge of an interval counts in part, so that the expected coverage of a right
        posterior is the probability itself, whatever the number of draws.

        Args:
            probs: numbers between 0 and 1.
        """
        inside = np.asarray(probs, np.float64)
        if inside.ndim != 1 or not np.all((inside > 0) & (inside < 1)):
            raise ValueError(f"probs={probs!r} must be probabilities between 0 and 1.")
        error = np.sqrt(inside * (1 - inside) / self.num_simulations)
        cells = np.arange(self.num_samples + 2) / (self.num_samples + 1)
        low, high = (1 - inside[:, None]) / 2, (1 + inside[:, None]) / 2
        shares = np.diff(np.clip(cells, low, high), axis=1) * (self.num_samples + 1)
        return {name: Coverage(shares[:, r].mean(axis=1), error) for name, r in self.ranks.items()}

    def ecdf_difference(self) -> dict[str, np.ndarray]:
        """The ECDF of the ranks less the uniform CDF, at `band().position` on the last axis."""
        return {
            name: uniformity.ecdf_difference(r, self.num_samples) for name, r in self.ranks.items()
        }

    def band(self, prob: float = 0.95) -> uniformity.Band:
        """Where `ecdf_difference` of one quantity stays, everywhere at once, with `prob`."""
        if not 0 < prob < 1:
            raise ValueError(f"prob={prob} must lie between 0 and 1.")
        return uniformity.band(self.num_simulations, self.num_samples, prob)

    def to_arviz(self) -> Any:
        """ArviZ data with a group `prior_sbc`, as `plot_ecdf_pit` of ArviZ 1.x takes it.

        Each rank becomes a number in its cell of (0, 1), which is uniform if the rank is: the
        *probability integral transform*. In ArviZ 0.x, `plot_ecdf(values, pit=True, cdf=...)`.
        """
        from ..arviz import from_calibration  # ArviZ takes seconds to import

        return from_calibration(self)

    def print_summary(self) -> None:
        """Print one line for each quantity; of several coordinates the mean coverage."""
        probs = (0.5, 0.8, 0.9, 0.95)
        coverage, pvalues = self.coverage(probs), self.pvalues()
        width = max(map(len, self.ranks)) + 6
        print(f"{self!r}\n{'':{width}}  p-value  " + "".join(f"{p:>8.0%}" for p in probs))
        for name, found in pvalues.items():
            label = name if found.ndim == 0 else f"{name} ({found.size})"
            worst = min(1.0, float(np.min(found)) * found.size)
            means = coverage[name].value.reshape(len(probs), -1).mean(axis=1)
            print(f"{label:{width}}  {worst:7.4f}  " + "".join(f"{mean:8.3f}" for mean in means))
        errors = next(iter(coverage.values())).standard_error
        print(f"{'standard error':{width + 11}}" + "".join(f"{error:8.3f}" for error in errors))

    def __repr__(self) -> str:
        collapsed = f", {self.num_collapsed} of them collapsed" * (self.num_collapsed > 0)
        return (
            f"Calibration({self.method}, {self.num_simulations} simulations of "
            f"{self.num_samples} draws{collapsed}, p-value {self.pvalue:.4f})"
        )
