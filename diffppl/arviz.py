"""From a run to ArviZ, on both of its generations.

ArviZ is 0.x on Python 3.11 (`InferenceData`) and 1.x from 3.12 on (`xarray.DataTree`). Both are
collections of xarray data sets, so the data sets are made here and only the last line differs.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .calibration import Calibration
    from .conditioning import Posterior

Dims = Mapping[str, Sequence[str]] | None
Coords = Mapping[str, Any] | None

_MIN_WEIGHTS = 25  # that the tail of weights can be fit to


def from_posterior(posterior: "Posterior", *, dims: Dims = None, coords: Coords = None) -> Any:
    """Posterior draws, diagnostics, observations and predictions as ArviZ data.

    Args:
        posterior: one that has been run.
        dims: names of event dimensions, `{site: [names]}`.
        coords: labels of dimensions, `{name: labels}`.

    Raises:
        ValueError: `dims` names a site that the program does not have.
    """
    dims = {_plain(name): names for name, names in (dims or {}).items()}
    samples = _renamed(posterior.get_samples(group_by_chain=True))
    observed = _renamed(posterior.observed_data())
    likelihoods = _renamed(posterior.log_likelihood())
    if unknown := set(dims) - samples.keys() - observed.keys():
        raise ValueError(
            f"dims names {sorted(unknown)}, but the program's sites are "
            f"{sorted(samples.keys() | observed.keys())}."
        )
    chains = ["chain", "draw"]
    sample_stats = _dataset(posterior.sample_stats(), chains, None, coords)
    if posterior.step_stats:
        num_entries = next(iter(posterior.step_stats.values())).shape[1]
        step = {"step": np.arange(num_entries - 1, -1, -1), **dict(coords or {})}
        sample_stats = sample_stats.merge(
            _dataset(posterior.step_stats, ["chain", "step"], None, step)
        )
    known = _renamed(posterior.known_entries())
    constants = {name: np.where(mask, samples[name][0, 0], np.nan) for name, mask in known.items()}
    prior = {name: x[None] for name, x in _renamed(posterior.prior()).items()}
    predictions = _renamed(posterior.posterior_predictive())
    groups = {
        "posterior": _without_known(_dataset(samples, chains, dims, coords), known),
        "prior": _dataset(prior, chains, dims, coords),
        "log_likelihood": _dataset(likelihoods, chains, _leading(dims, likelihoods), coords),
        "sample_stats": sample_stats,
        "observed_data": _dataset(observed, [], dims, coords),
        "posterior_predictive": _dataset(predictions, chains, dims, coords),
    }
    if constants:
        groups["constant_data"] = _dataset(constants, [], dims, coords)
    evidence = posterior.log_evidence
    groups["posterior"].attrs.update(
        inference_library="diffppl",
        method=repr(posterior.method),
        explanation=posterior.explanation,
        exactness=posterior.exactness.value,
        faults="; ".join(posterior.faults),
        num_denoiser_calls=posterior.num_denoiser_calls,
        pareto_k=posterior.pareto_k,
        log_evidence=evidence.value,
        log_evidence_standard_error=evidence.standard_error,
        log_evidence_interval=np.asarray(evidence.interval),
        log_evidence_fault=evidence.fault,
    )
    return _collect(groups)


def from_calibration(calibration: "Calibration") -> Any:
    """Ranks as numbers in (0, 1), uniform if the ranks are, in the group `prior_sbc`."""
    rng = np.random.default_rng(0)
    values = {
        name: ((ranks + rng.uniform(size=ranks.shape)) / (calibration.num_samples + 1))[None]
        for name, ranks in calibration.ranks.items()
    }
    return _collect({"prior_sbc": _dataset(values, ["chain", "draw"], None, None)})


def pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """Pareto k-hat along the last axis; NaN where there are too few weights, or all are equal."""
    shape, num = log_weights.shape[:-1], log_weights.shape[-1]
    if num < _MIN_WEIGHTS:
        return np.full(shape, np.nan)
    rows = log_weights.astype(np.float64).reshape(-1, num)
    return np.reshape([_pareto_k(row) for row in rows], shape)


def _pareto_k(log_weights: np.ndarray) -> float:
    try:
        try:  # ArviZ 1.x, whose statistics are imported in half the time of the whole
            stats: Any = importlib.import_module("arviz_stats.base").array_stats
            found = float(stats.psislw(-log_weights)[1])
        except ImportError:
            psislw: Any = importlib.import_module("arviz").psislw
            found = float(psislw(log_weights)[1])
    except ValueError:  # ArviZ 1.x, where the weights of the tail are equal
        return math.nan
    return found if math.isfinite(found) else math.nan  # ArviZ 0.x has infinity there


def _plain(name: str) -> str:
    """A site's name without "/" (of `numpyro.handlers.scope`), which separates groups in xarray."""
    return name.replace("/", ".")


def _renamed(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by plain names.

    Raises:
        ValueError: two sites whose plain names are the same.
    """
    renamed = {_plain(name): np.asarray(x) for name, x in values.items()}
    if len(renamed) < len(values):
        raise ValueError(
            f"the sites {sorted(values)} are not told apart where '/' becomes '.'; rename one."
        )
    return renamed


def _without_known(dataset: Any, known: Mapping[str, np.ndarray]) -> Any:
    """Draws without the entries that were observed without noise.

    A site with such entries becomes a vector of the others, on a dimension `{name}_unknown` that is
    labelled by their indices: diagnostics of constants are not defined.
    """
    for name, mask in known.items():
        variable = dataset[name]
        own = list(variable.dims[2:])
        dataset = dataset.drop_vars(name)
        if mask.all():
            continue
        labels = [variable[dimension].values for dimension in own]
        index = np.argwhere(~mask)
        named = [
            ",".join(str(axis[i]) for axis, i in zip(labels, row, strict=True)) for row in index
        ]
        free = variable.values[:, :, ~mask]
        dimension = f"{name}_unknown"
        dataset = dataset.assign_coords({dimension: named})
        dataset[name] = (("chain", "draw", dimension), free)
    return dataset.drop_dims([d for d in dataset.dims if not _is_used(dataset, d)])


def _is_used(dataset: Any, dimension: str) -> bool:
    return any(dimension in variable.dims for variable in dataset.data_vars.values())


def _leading(dims: Dims, values: Mapping[str, Any]) -> Dims:
    """The names of those dimensions of a site that its log-density still has."""
    return {
        name: list(names)[: np.ndim(values[name]) - 2]
        for name, names in (dims or {}).items()
        if name in values
    }


def _dataset(values: Mapping[str, Any], leading: list[str], dims: Dims, coords: Coords) -> Any:
    """One xarray data set: `leading` dimensions, then the event's own."""
    import xarray

    arrays, labels = {}, {}
    for name, value in values.items():
        array = np.asarray(value)
        rank = array.ndim - len(leading)
        own = list((dims or {}).get(name, [f"{name}_dim_{i}" for i in range(rank)]))
        if len(own) != rank:
            raise ValueError(
                f"dims[{name!r}]={own} has {len(own)} names, but the site has {rank} dimensions."
            )
        arrays[name] = ([*leading, *own], array)
        for dimension, size in zip([*leading, *own], array.shape, strict=True):
            labels[dimension] = list((coords or {}).get(dimension, range(size)))
    return xarray.Dataset(arrays, coords=labels)


def _collect(groups: Mapping[str, Any]) -> Any:
    import arviz

    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(dict(groups))
