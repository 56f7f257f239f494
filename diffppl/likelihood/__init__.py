"""Room 4: how likely is x_0.

*What lives here*: the importance-weighted bound and the path weights behind it, for every kind of
data; the density of the probability flow, for real data; the entropy bracket of a reverse step;
Parzen windows around samples; nats as bits per dimension. The ELBO itself, which training needs
too, is in `diffppl.objectives`.

*The contract*: a public function `(key, model, x_0, *, context=None, ...)` takes data in the user's
units, shape `(n, *event_shape)`, and returns nats in the user's units with their error, as
`LogEstimate` or `Bound` do. A bound or an estimate is never called `log_prob`.

*To add one*: a new file, and a test that holds it against an exact answer.

*What does not belong here*: likelihoods of observations, which are programs.
"""

from .bits import BitsPerDim as BitsPerDim
from .bits import bits_per_dim as bits_per_dim
from .entropy import EntropyBounds as EntropyBounds
from .entropy import entropy_bounds as entropy_bounds
from .estimate import LogEstimate as LogEstimate
from .flow import AbstractTrace as AbstractTrace
from .flow import ExactTrace as ExactTrace
from .flow import Hutchinson as Hutchinson
from .flow import flow_likelihood as flow_likelihood
from .flow import flow_log_density as flow_log_density
from .parzen import ParzenEstimate as ParzenEstimate
from .parzen import parzen as parzen
from .path_weights import PathWork as PathWork
from .path_weights import importance_bound as importance_bound
from .path_weights import jarzynski as jarzynski
from .path_weights import path_work as path_work
