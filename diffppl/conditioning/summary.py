"""The printed summary of a posterior, and the attributes of its ArviZ data."""

import numpy as np
from numpyro.diagnostics import print_summary

from .evidence import LogEvidence
from .program import Values
from .runs import Run

_MAX_SIZE = 20  # sites with more coordinates are omitted
_MIN_DRAWS = 4  # required by NumPyro's diagnostics


def print_posterior(samples: Values, known: dict[str, np.ndarray], prob: float) -> None:
    """Print NumPyro's summary of the small sites.

    Args:
        samples: draws by site, `(chains, draws, ...)`.
        known: masks of the noiselessly observed entries, for sites with such entries.
        prob: probability mass of the credible interval.
    """
    arrays = {name: np.asarray(x) for name, x in samples.items()}
    small = {name: x for name, x in arrays.items() if x[0, 0].size <= _MAX_SIZE}
    rows, constants = {}, {}
    for name, x in small.items():
        if name not in known:
            rows[name] = x
            continue
        # Observed entries are constant, so their R-hat and effective sample size are undefined.
        for index in np.ndindex(x.shape[2:]):
            label = f"{name}[{','.join(map(str, index))}]" if index else name
            entry = x[(slice(None), slice(None), *index)]
            if known[name][index]:
                constants[label] = entry[0, 0]
            else:
                rows[label] = entry
    if rows and next(iter(rows.values())).shape[1] >= _MIN_DRAWS:
        print_summary(rows, prob=prob, group_by_chain=True)
    for label, value in constants.items():
        print(f"{label}: observed, {value:g}")
    for name in arrays.keys() - small.keys():
        print(f"{name}: omitted, shape {arrays[name].shape[2:]} is too large; see to_arviz().")


def print_run(run: Run, evidence: LogEvidence) -> None:
    """Print the evidence of a run, its method and its cost."""
    print(f"log evidence: {evidence}")
    if not np.isnan(evidence.value):
        print(
            "  (± is the Monte Carlo error of the evidence under this reverse chain; errors of "
            "the prior and of the chain's length are not included)"
        )
    print(f"exactness: {run.method.exactness.value} ({run.method!r}: {run.explanation})")
    print(f"denoiser calls: {run.num_denoiser_calls:,}")


def run_attributes(run: Run, evidence: LogEvidence) -> dict[str, object]:
    """Return the settings and results of a run that are not arrays by site."""
    return {
        "inference_library": "diffppl",
        "method": repr(run.method),
        "explanation": run.explanation,
        "exactness": run.method.exactness.value,
        "faults": "; ".join(run.fault_names),
        "num_denoiser_calls": run.num_denoiser_calls,
        "pareto_k": run.pareto_k,
        "log_evidence": evidence.value,
        "log_evidence_standard_error": evidence.standard_error,
        "log_evidence_interval": np.asarray(evidence.interval),
        "log_evidence_fault": evidence.fault,
    }
