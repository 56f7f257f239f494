"""Room 4: how likely is x_0.

*What lives here*: the importance-weighted bound and the path weights behind it, for every kind of
data; the density of the probability flow, for real data; the entropy bracket of a reverse step;
Parzen windows around samples; nats as bits per dimension. The ELBO itself, which training needs
too, is in `diffppl.likelihood.elbo`.

*The contract*: a public function `(key, model, x_0, *, context=None, ...)` takes data in the user's
units, shape `(n, *event_shape)`, and returns nats in the user's units with their error, as
`LogEstimate` or `Bound` do. A bound or an estimate is never called `log_prob`.

*To add one*: a new file, and a test that holds it against an exact answer.

*What does not belong here*: likelihoods of observations, which are programs.
"""

from .bits import BitsPerDim, bits_per_dim
from .entropy import EntropyBounds, entropy_bounds
from .estimate import LogEstimate
from .flow import AbstractTrace, ExactTrace, Hutchinson, flow_likelihood, flow_log_density
from .parzen import ParzenEstimate, parzen
from .path_weights import PathWork, importance_bound, jarzynski, path_work

__all__ = [
    "AbstractTrace",
    "BitsPerDim",
    "EntropyBounds",
    "ExactTrace",
    "Hutchinson",
    "LogEstimate",
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
