"""The printed summary of a posterior."""

import numpy as np
from numpyro.diagnostics import print_summary

from .program import Values

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
