"""What `fit` warns of before it begins: data that the chain, or the precision, does not suit."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..likelihood.elbo import prior_term
from ..model import DiffusionModel
from ..model.inputs import left_at_the_end
from ..model.scaling import spread_of
from ..processes import GaussianDiffusion

# The mean KL(q(x_T given x_0), pi) that a chain may end with, in nats. Where it is
# alpha_bar_T |x_0|^2 / 2, as for real data, that is a last noise level of 3.2 times the length of
# the data; and the samples' start is then off by at most sqrt(0.05 / 2) = 0.16 in total variation.
MAX_NATS_LEFT = 0.05
MAX_FLOOR = 0.5  # of a column's spread: what the first level hides
MAX_WIDER = 0.1  # of a column's variance: what the last step adds, if the column is a narrow one
FAR = 30.0  # scales from the centre
COARSEST = 0.1  # of a column's spread: how far apart two numbers may be
MAX_NAMED = 4  # columns in one message


def warn_if_misfit(model: DiffusionModel, data: np.ndarray, names: list[str] | None) -> None:
    """Warn of columns and levels that do not suit one another, each with its remedy.

    Args:
        model: with the scaling that it will be fitted with.
        data: those that stand for all, in the user's units.
        names: of the columns, if they have any.
    """
    data = data[:: max(1, data.shape[0] // 10_000)]
    x = np.asarray(model.to_model(data))
    is_far = np.zeros(x.shape, bool)
    if isinstance(model.process, GaussianDiffusion):
        is_far = np.abs(x) > FAR
        for line in _about_columns(model, _columns(model, data, x, is_far, names)):
            warnings.warn(line, stacklevel=3)
    rest = x[~is_far.reshape(len(x), -1).any(axis=1)]
    if rest.size:
        _warn_of_the_end(model, jnp.asarray(rest))


def _warn_of_the_end(model: DiffusionModel, data: Any) -> None:
    left = float(-jnp.mean(jax.vmap(lambda x: prior_term(model, x))(data)))
    if left <= MAX_NATS_LEFT:
        return
    signal = ""
    if isinstance(model.process, GaussianDiffusion):
        signal = f", E|sqrt(alpha_bar_T) x_0| = {float(left_at_the_end(model, data)):.3g}"
    warnings.warn(
        f"the chain does not end in noise: at t = {model.num_steps} it still holds {left:.3g} "
        f"nats about a datum (at most {MAX_NATS_LEFT} is good){signal}. Samples "
        "start from pure noise, so the weights of the modes will be wrong: use a schedule "
        "that goes further, such as schedules.LogSNRLinear with a larger noise_to_signal.",
        stacklevel=4,
    )


class Columns(NamedTuple):
    """What is to be known of each column; of other events than vectors, of all numbers as one.

    Attributes:
        names: by which they are called.
        centre, spread: in the user's units; the spread of a column that never varies is 0.
        scale: of the model.
        mean, deviation: in the chain's units, but for outliers.
        largest: magnitude, in the user's units.
        far: the share of values more than `FAR` scales from the centre, and the farthest.
        is_rounded: whether the data have a precision no better than JAX's.
    """

    names: list[str]
    centre: np.ndarray
    spread: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    largest: np.ndarray
    far: tuple[np.ndarray, np.ndarray]
    is_rounded: bool


def _columns(
    model: DiffusionModel,
    data: np.ndarray,
    x: np.ndarray,
    is_far: np.ndarray,
    names: list[str] | None,
) -> Columns:
    assert model.scaling is not None
    centre, spread = map(np.atleast_1d, spread_of(data))
    axes = 0 if data.ndim == 2 else None
    count = centre.size
    if data.ndim != 2:
        called = ["data"]
    elif names is None or len(names) != count:
        called = [f"column {j} of data" for j in range(count)]
    else:
        called = [f"column {name!r} of data" for name in names]
    mean, deviation = map(np.atleast_1d, spread_of(x))
    scale = np.broadcast_to(np.asarray(model.scaling.scale, np.float64), model.event_shape)
    return Columns(
        names=called,
        centre=centre,
        spread=spread,
        scale=np.abs(np.atleast_1d(scale if data.ndim == 2 else scale.mean())),
        mean=mean,
        deviation=np.where(spread > 0, deviation, 0.0),
        largest=np.atleast_1d(np.abs(data).max(axis=axes)),
        far=(np.atleast_1d(is_far.mean(axis=axes)), np.atleast_1d(np.abs(x).max(axis=axes))),
        is_rounded=np.finfo(data.dtype).eps >= jnp.finfo(jnp.result_type(float)).eps,
    )


def _about_columns(model: DiffusionModel, columns: Columns) -> Iterator[str]:
    varies = columns.spread > 0
    moment = np.mean((columns.mean**2 + columns.deviation**2)[varies]) if varies.any() else 1.0
    if abs(moment - 1) > 0.05:
        yield (
            f"data have a mean square of {moment:.3g} in the chain's units, where the chain "
            "expects 1: pass scaling=Scaling.from_data(data)."
        )
    if len(varies) > 1 or not varies.any():
        yield from _line(
            columns,
            ~varies,
            "never varies",
            lambda j: f"always {columns.centre[j]:.6g}",
            "There a density has no bound, and draws have the noise of the first level. Leave it "
            "out.",
        )
    schedule = model.process.schedule
    floor = float(jnp.sqrt(schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1]))
    variance = np.where(varies, columns.deviation, 1.0) ** 2
    is_wider = 2 * floor**2 * (1 - variance) > MAX_WIDER * variance
    yield from _line(
        columns,
        varies & (is_wider | (floor > MAX_FLOOR * columns.deviation)),
        "hardly exceeds the noise of the first level",
        lambda j: f"spread {columns.spread[j]:.3g}, noise {floor * columns.scale[j]:.3g}",
        f"That noise is {floor:.3g} of the model's scale, and finer detail is lost in it. Use "
        "scaling=Scaling.from_data(data), where each column of a table has its own scale, or a "
        "schedule that begins with less noise.",
    )
    share, farthest = columns.far
    yield from _line(
        columns,
        varies & (share > 0),
        f"has values more than {FAR:g} scales from the centre",
        lambda j: f"{share[j]:.2%} of it, up to {farthest[j]:.3g}",
        "A network learns little there, and at the cost of the rest. Take logarithms (or "
        "numpy.arcsinh) first, or leave such values out.",
    )
    default = jnp.finfo(jnp.result_type(float))
    step = float(default.eps) * columns.largest
    where = "Data" if columns.is_rounded else "The fit is in float64, but draws"
    yield from _line(
        columns,
        varies & (step > COARSEST * columns.spread),
        f"is too far from 0 for {default.dtype}",
        lambda j: f"spread {columns.spread[j]:.3g}, steps of {step[j]:.2g}",
        f"{where} are rounded to such steps: subtract a constant first, or call "
        "jax.config.update('jax_enable_x64', True).",
    )


def _line(
    columns: Columns, which: np.ndarray, what: str, about: Callable[[int], str], remedy: str
) -> Iterator[str]:
    """One message about the columns in question; nothing if there are none."""
    found = np.flatnonzero(which)
    if found.size:
        named = [f"{columns.names[j]} ({about(j)})" for j in found[:MAX_NAMED]]
        more = f" and {found.size - MAX_NAMED} more" if found.size > MAX_NAMED else ""
        yield f"{', '.join(named)}{more}: {what}. {remedy}"
