"""Warnings of `fit` about data that do not suit the chain or the floating-point precision."""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..likelihood.elbo import prior_term
from ..model import DiffusionModel
from ..model.inputs import residual_signal
from ..model.scaling import spread_of
from ..processes import GaussianDiffusion

# The largest mean KL(q(x_T | x_0), pi) without a warning, in nats. For real data it is
# alpha_bar_T |x_0|^2 / 2, so that the last noise level is 3.2 times the length of the data. By
# Pinsker's inequality the samples start within sqrt(0.05 / 2) = 0.16 in total variation.
MAX_NATS_LEFT = 0.05
MAX_FLOOR = 0.5  # noise of the first level, relative to a column's spread
MAX_WIDER = 0.1  # variance that the final step adds to a narrow column, relative to the column's
MAX_SCALES = 30.0  # distance of an outlier from the centre, in scales
MAX_SPACING = 0.1  # spacing of floating-point numbers, relative to a column's spread
MAX_NAMED = 4  # columns in one message


def warn_if_misfit(model: DiffusionModel, data: np.ndarray, names: list[str] | None) -> None:
    """Warn about columns and levels that do not suit one another, with the remedies.

    Args:
        model: with the scaling used in the fit.
        data: representative data, in the user's units.
        names: names of the columns, if they have any.
    """
    data = data[:: max(1, data.shape[0] // 10_000)]
    x = np.asarray(model.to_model(data))
    is_far = np.zeros(x.shape, bool)
    if isinstance(model.process, GaussianDiffusion):
        is_far = np.abs(x) > MAX_SCALES
        columns = _column_statistics(model, data, x, is_far, names)
        for message in _column_messages(model, columns):
            warnings.warn(message, stacklevel=3)
    # Outliers have a message of their own, and would dominate a mean of squares.
    bulk = x[~is_far.reshape(len(x), -1).any(axis=1)]
    if bulk.size:
        _warn_if_not_noise(model, jnp.asarray(bulk))


def _warn_if_not_noise(model: DiffusionModel, data: Array) -> None:
    nats = float(-jnp.mean(jax.vmap(lambda x: prior_term(model, x))(data)))
    if nats <= MAX_NATS_LEFT:
        return
    signal = ""
    if isinstance(model.process, GaussianDiffusion):
        signal = f", E|sqrt(alpha_bar_T) x_0| = {float(residual_signal(model, data)):.3g}"
    warnings.warn(
        f"the chain does not end in noise: at t = {model.num_steps} the mean KL(q(x_T | x_0), pi) "
        f"is {nats:.3g} nats (at most {MAX_NATS_LEFT} is recommended){signal}. Samples start from "
        "pure noise, so the weights of the modes will be wrong: use a schedule that ends with more "
        "noise, such as schedules.log_snr_linear with a larger noise_to_signal.",
        stacklevel=4,
    )


class Columns(NamedTuple):
    """Statistics of each column; events that are not vectors are treated as a single column."""

    names: list[str]  # used in messages
    centre: np.ndarray  # in the user's units, as are `spread` (0 if constant) and `largest`
    spread: np.ndarray
    scale: np.ndarray  # of the model's scaling
    mean: np.ndarray  # in the chain's units without outliers, as is `deviation`
    deviation: np.ndarray
    largest: np.ndarray  # magnitude
    far: tuple[np.ndarray, np.ndarray]  # share beyond `MAX_SCALES` scales, and largest distance
    is_rounded: bool  # whether the precision of the data is no better than JAX's


def _column_statistics(
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
        labels = ["data"]
    elif names is None or len(names) != count:
        labels = [f"column {j} of data" for j in range(count)]
    else:
        labels = [f"column {name!r} of data" for name in names]
    mean, deviation = map(np.atleast_1d, spread_of(x))
    scale = np.broadcast_to(np.asarray(model.scaling.scale, np.float64), model.event_shape)
    return Columns(
        names=labels,
        centre=centre,
        spread=spread,
        scale=np.abs(np.atleast_1d(scale if data.ndim == 2 else scale.mean())),
        mean=mean,
        deviation=np.where(spread > 0, deviation, 0.0),
        largest=np.atleast_1d(np.abs(data).max(axis=axes)),
        far=(np.atleast_1d(is_far.mean(axis=axes)), np.atleast_1d(np.abs(x).max(axis=axes))),
        is_rounded=np.finfo(data.dtype).eps >= jnp.finfo(jnp.result_type(float)).eps,
    )


def _column_messages(model: DiffusionModel, columns: Columns) -> Iterator[str]:
    varies = columns.spread > 0
    moment = np.mean((columns.mean**2 + columns.deviation**2)[varies]) if varies.any() else 1.0
    if abs(moment - 1) > 0.05:
        yield (
            f"data have a mean square of {moment:.3g} in the chain's units, instead of 1: "
            "pass scaling=Scaling.from_data(data)."
        )
    if len(varies) > 1 or not varies.any():
        yield from _message(
            columns,
            ~varies,
            "never varies",
            lambda j: f"always {columns.centre[j]:.6g}",
            "Its density is unbounded, and draws have the noise of the first level. Leave it out.",
        )
    # The noise-to-signal ratio of the first level is its noise in the chain's units.
    schedule = model.process.schedule
    floor = float(jnp.sqrt(schedule.one_minus_alpha_bar()[1] / schedule.alpha_bar()[1]))
    variance = np.where(varies, columns.deviation, 1.0) ** 2
    # The final step adds a variance of 2 floor^2 (1 - variance) to a narrow column.
    is_wider = 2 * floor**2 * (1 - variance) > MAX_WIDER * variance
    yield from _message(
        columns,
        varies & (is_wider | (floor > MAX_FLOOR * columns.deviation)),
        "hardly exceeds the noise of the first level",
        lambda j: f"spread {columns.spread[j]:.3g}, noise {floor * columns.scale[j]:.3g}",
        f"That noise is {floor:.3g} of the model's scale, and hides finer detail. Use "
        "scaling=Scaling.from_data(data), where each column of a table has its own scale, or a "
        "schedule that begins with less noise.",
    )
    share, farthest = columns.far
    yield from _message(
        columns,
        varies & (share > 0),
        f"has values more than {MAX_SCALES:g} scales from the centre",
        lambda j: f"{share[j]:.2%} of it, up to {farthest[j]:.3g}",
        "Networks fit such values poorly, and the others less well because of them. Take "
        "logarithms (or numpy.arcsinh) first, or leave such values out.",
    )
    # Spacing of JAX's floating-point numbers at the largest value of a column.
    default = jnp.finfo(jnp.result_type(float))
    step = float(default.eps) * columns.largest
    where = "Data" if columns.is_rounded else "The fit is in float64, but draws"
    yield from _message(
        columns,
        varies & (step > MAX_SPACING * columns.spread),
        f"is too far from 0 for {default.dtype}",
        lambda j: f"spread {columns.spread[j]:.3g}, steps of {step[j]:.2g}",
        f"{where} are rounded to such steps: subtract a constant first, or call "
        "jax.config.update('jax_enable_x64', True).",
    )


def _message(
    columns: Columns, mask: np.ndarray, problem: str, detail: Callable[[int], str], remedy: str
) -> Iterator[str]:
    """Yield one message about the columns in a mask, if there are any."""
    indices = np.flatnonzero(mask)
    if indices.size:
        named = [f"{columns.names[j]} ({detail(j)})" for j in indices[:MAX_NAMED]]
        more = f" and {indices.size - MAX_NAMED} more" if indices.size > MAX_NAMED else ""
        yield f"{', '.join(named)}{more}: {problem}. {remedy}"
