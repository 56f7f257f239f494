"""From a run to ArviZ, on both of its generations.

ArviZ is 0.x on Python 3.11 (`InferenceData`) and 1.x from 3.12 on (`xarray.DataTree`). Both are
collections of xarray data sets, so the data sets are made here and only the last line differs.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .calibration import Calibration
    from .conditioning import Posterior

Dims = Mapping[str, Sequence[str]] | None
Coords = Mapping[str, Any] | None

_FEWEST_WEIGHTS = 25  # that the tail of weights can be fit to


def from_posterior(posterior: "Posterior", *, dims: Dims = None, coords: Coords = None) -> Any:
    """Posterior draws, diagnostics, observations and predictions as ArviZ data.

    Args:
        posterior: one that has been run.
        dims: names of event dimensions, `{site: [names]}`.
        coords: labels of dimensions, `{name: labels}`.

    Raises:
        ValueError: `dims` names a site that the program does not have.
    """
    samples = posterior.get_samples(group_by_chain=True)
    predictions = posterior.posterior_predictive()
    observed = posterior.observed_data()
    likelihoods = posterior.log_likelihood()
    prior = {name: np.asarray(x)[None] for name, x in posterior.prior().items()}
    unknown = set(dims or {}) - samples.keys() - observed.keys()
    if unknown:
        raise ValueError(
            f"dims names {sorted(unknown)}, but the program's sites are "
            f"{sorted(samples.keys() | observed.keys())}."
        )
    chains = ["chain", "draw"]
    sample_stats = _dataset(posterior.draws.sample_stats, chains, None, coords)
    if posterior.step_stats:
        num_steps = next(iter(posterior.step_stats.values())).shape[1]
        step = {"step": np.arange(num_steps - 1, -1, -1), **dict(coords or {})}
        sample_stats = sample_stats.merge(
            _dataset(posterior.step_stats, ["chain", "step"], None, step)
        )
    groups = {
        "posterior": _dataset(samples, chains, dims, coords),
        "prior": _dataset(prior, chains, dims, coords),
        "log_likelihood": _dataset(likelihoods, chains, _leading(dims, likelihoods), coords),
        "sample_stats": sample_stats,
        "observed_data": _dataset(observed, [], dims, coords),
        "posterior_predictive": _dataset(predictions, chains, dims, coords),
    }
    log_evidence = posterior.log_evidence
    groups["posterior"].attrs.update(
        inference_library="diffppl",
        method=repr(posterior.method),
        explanation=posterior.explanation,
        exactness=posterior.exactness.value,
        num_denoiser_calls=posterior.num_denoiser_calls,
        pareto_k=posterior.pareto_k,
        log_evidence=log_evidence.value,
        log_evidence_standard_error=log_evidence.standard_error,
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
    """Pareto k-hat along the last axis; NaN where there are too few weights."""
    if log_weights.shape[-1] < _FEWEST_WEIGHTS:
        return np.full(log_weights.shape[:-1], np.nan)
    import arviz

    log_weights = log_weights.astype(np.float64)
    psislw: Any = getattr(arviz, "psislw", None)
    if psislw is not None:
        return np.asarray(psislw(log_weights)[1])
    stats: Any = importlib.import_module("arviz_stats.base").array_stats
    return np.asarray(stats.psislw(-log_weights)[1])


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
