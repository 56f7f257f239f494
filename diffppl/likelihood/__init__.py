"""Likelihoods: estimates of log p(x_0) and bounds on it.

*What lives here*: the ELBO (`elbo`), which `fit` maximises; the importance-weighted bound and the
path weights behind it, for all data types; the density of the probability flow, for real data;
entropy bounds of the reverse steps; Parzen-window densities; conversion of nats to bits per
dimension.

*The contract*: a public function `(key, model, x_0, *, context=None, ...)` takes data in the user's
units, shape `(n, *event_shape)`, and returns an `Estimate`, or a record that contains one: nats in
the user's units, with a standard error. A bound or an estimate is never called `log_prob`.

*To add one*: a new file, and a test against a closed-form log-likelihood.

*What does not belong here*: likelihoods of observations, which are part of a program.
"""

from ..model.flow_density import AbstractTrace, ExactTrace, Hutchinson
from .entropy import EntropyBounds, entropy_bounds
from .estimate import Estimate, bits_per_dim
from .flow import flow_likelihood, flow_log_density
from .parzen import ParzenEstimate, parzen
from .path_weights import PathWork, importance_bound, jarzynski, path_work

__all__ = [
    "AbstractTrace",
    "EntropyBounds",
    "Estimate",
    "ExactTrace",
    "Hutchinson",
    "ParzenEstimate",
    "PathWork",
    "bits_per_dim",
    "entropy_bounds",
    "flow_likelihood",
    "flow_log_density",
    "importance_bound",
    "jarzynski",
    "parzen",
    "path_work",
]
