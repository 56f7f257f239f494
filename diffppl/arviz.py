"""Conversion of results to ArviZ data, for ArviZ 0.x and 1.x.

ArviZ is 0.x on Python 3.11 (`InferenceData`) and 1.x from 3.12 on (`xarray.DataTree`). Both are
collections of xarray data sets, so only the container differs (`_collect`).
"""

import importlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array

if TYPE_CHECKING:
    from xarray import Dataset

Values = Mapping[str, np.ndarray | Array]  # by name of the site or of the statistic
Dims = Mapping[str, Sequence[str]] | None
Coords = Mapping[str, Sequence | np.ndarray] | None
ArvizData = Any  # InferenceData (ArviZ 0.x) or xarray.DataTree (1.x)

_MIN_WEIGHTS = 25  # below this the tail has too few weights for the fit of a Pareto distribution


def from_posterior(
    posterior: Values,
    *,
    groups: Mapping[str, Values],
    step_stats: Values,
    noiseless: Values,
    attributes: Mapping[str, object],
    dims: Dims = None,
    coords: Coords = None,
) -> ArvizData:
    """Convert posterior draws, diagnostics, observations and predictions to ArviZ data.

    Args:
        posterior: draws by site, shape `(num_chains, num_samples, ...)`.
        groups: values of the other groups: `prior`, `log_likelihood`, `sample_stats`,
            `observed_data` and `posterior_predictive`.
        step_stats: diagnostics by chain and step, from t = T down to the last.
        noiseless: masks of the noiselessly observed entries, for the sites that have any.
        attributes: of the group `posterior`.
        dims: names of event dimensions, `{site: [names]}`.
        coords: coordinate labels of dimensions, `{name: labels}`.

    Raises:
        ValueError: `dims` names a site that does not exist in the program, or has a wrong number of
            names for a site.
    """
    dims = {_plain(name): names for name, names in (dims or {}).items()}
    samples, masks = _renamed(posterior), _renamed(noiseless)
    observed, likelihoods = _renamed(groups["observed_data"]), _renamed(groups["log_likelihood"])
    if unknown := set(dims) - samples.keys() - observed.keys():
        raise ValueError(
            f"dims names {sorted(unknown)}, but the program's sites are "
            f"{sorted(samples.keys() | observed.keys())}."
        )
    chains = ["chain", "draw"]
    sample_stats = _dataset(groups["sample_stats"], chains, None, coords)
    if step_stats:
        num_entries = next(iter(step_stats.values())).shape[1]
        step = {"step": np.arange(num_entries - 1, -1, -1), **dict(coords or {})}
        sample_stats = sample_stats.merge(_dataset(step_stats, ["chain", "step"], None, step))
    constants = {name: np.where(mask, samples[name][0, 0], np.nan) for name, mask in masks.items()}
    prior = {name: x[None] for name, x in _renamed(groups["prior"]).items()}
    predictions = _renamed(groups["posterior_predictive"])
    datasets = {
        "posterior": _without_noiseless(_dataset(samples, chains, dims, coords), masks),
        "prior": _dataset(prior, chains, dims, coords),
        "log_likelihood": _dataset(likelihoods, chains, _leading(dims, likelihoods), coords),
        "sample_stats": sample_stats,
        "observed_data": _dataset(observed, [], dims, coords),
        "posterior_predictive": _dataset(predictions, chains, dims, coords),
    }
    if constants:
        datasets["constant_data"] = _dataset(constants, [], dims, coords)
    datasets["posterior"].attrs.update(attributes)
    return _collect(datasets)


def from_ranks(ranks: Mapping[str, np.ndarray], num_samples: int) -> ArvizData:
    """Convert ranks to their randomised probability integral transform, as group `prior_sbc`."""
    rng = np.random.default_rng(0)
    values = {
        name: ((rank + rng.uniform(size=rank.shape)) / (num_samples + 1))[None]
        for name, rank in ranks.items()
    }
    return _collect({"prior_sbc": _dataset(values, ["chain", "draw"], None, None)})


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Return Pareto k-hat along the last axis; NaN for too few weights, or if all are equal."""
    shape, num = log_weights.shape[:-1], log_weights.shape[-1]
    if num < _MIN_WEIGHTS:
        return np.full(shape, np.nan)
    rows = log_weights.astype(np.float64).reshape(-1, num)
    return np.reshape([_pareto_k(row) for row in rows], shape)


def _pareto_k(log_weights: np.ndarray) -> float:
    try:
        try:  # ArviZ 1.x: importing arviz_stats alone takes half the time of arviz
            stats: Any = importlib.import_module("arviz_stats.base").array_stats
            # psislw of ArviZ 1.x negates its argument, which PSIS-LOO takes to be log-likelihoods.
            k_hat = float(stats.psislw(-log_weights)[1])
        except ImportError:
            psislw: Any = importlib.import_module("arviz").psislw
            k_hat = float(psislw(log_weights)[1])
    except ValueError:  # ArviZ 1.x raises if all weights in the tail are equal
        return math.nan
    return k_hat if math.isfinite(k_hat) else math.nan  # ArviZ 0.x returns infinity instead


def _plain(name: str) -> str:
    """Replace "/" (from `numpyro.handlers.scope`), xarray's group separator, in a site's name."""
    return name.replace("/", ".")


def _renamed(values: Values) -> dict[str, np.ndarray]:
    """Convert to NumPy arrays by plain names.

    Raises:
        ValueError: two sites have the same plain name.
    """
    renamed = {_plain(name): np.asarray(x) for name, x in values.items()}
    if len(renamed) < len(values):
        raise ValueError(
            f"two of the sites {sorted(values)} have the same name in ArviZ data, where '/' is "
            "replaced by '.'; rename one."
        )
    return renamed


def _without_noiseless(dataset: "Dataset", masks: Mapping[str, np.ndarray]) -> "Dataset":
    """Remove the entries with noiseless observations from the draws.

    These entries are constant, so that their diagnostics are undefined. The remaining entries of
    the site become a vector with dimension `{name}_unknown`, labelled by their indices.
    """
    for name, mask in masks.items():
        variable = dataset[name]
        event_dims = list(variable.dims[2:])
        dataset = dataset.drop_vars(name)
        if mask.all():
            continue
        labels = [variable[dimension].values for dimension in event_dims]
        index = np.argwhere(~mask)
        named = [
            ",".join(str(axis[i]) for axis, i in zip(labels, row, strict=True)) for row in index
        ]
        free = variable.values[:, :, ~mask]
        dimension = f"{name}_unknown"
        dataset = dataset.assign_coords({dimension: named})
        dataset[name] = (("chain", "draw", dimension), free)
    return dataset.drop_dims([d for d in dataset.dims if not _is_used(dataset, d)])


def _is_used(dataset: "Dataset", dimension: Hashable) -> bool:
    return any(dimension in variable.dims for variable in dataset.data_vars.values())


def _leading(dims: Dims, values: Values) -> Dims:
    """Return the leading names of each site's dimensions, as many as its log-density has."""
    return {
        name: list(names)[: np.ndim(values[name]) - 2]
        for name, names in (dims or {}).items()
        if name in values
    }


def _dataset(values: Values, leading: list[str], dims: Dims, coords: Coords) -> "Dataset":
    """Build an xarray data set with `leading` dimensions, then the dimensions of the event."""
    import xarray

    arrays, labels = {}, {}
    for name, value in values.items():
        array = np.asarray(value)
        rank = array.ndim - len(leading)
        event_dims = list((dims or {}).get(name, [f"{name}_dim_{i}" for i in range(rank)]))
        if len(event_dims) != rank:
            raise ValueError(
                f"dims[{name!r}]={event_dims} has {len(event_dims)} names, but the site has {rank} "
                "dimensions."
            )
        arrays[name] = ([*leading, *event_dims], array)
        for dimension, size in zip([*leading, *event_dims], array.shape, strict=True):
            labels[dimension] = list((coords or {}).get(dimension, range(size)))
    return xarray.Dataset(arrays, coords=labels)


def _collect(groups: "Mapping[str, Dataset]") -> ArvizData:
    arviz: Any = importlib.import_module("arviz")
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(dict(groups))
