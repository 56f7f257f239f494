"""Result of a fit: the model, its history, and the state from which it can be resumed."""

import dataclasses
from typing import final

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from ..checks.arrays import Numbers
from ..model import DiffusionModel
from .training import FitState


def _floats(values: Numbers) -> np.ndarray:
    return np.asarray(values, np.float64)


@final
class History(eqx.Module):
    """Losses and validations of a fit, drawn by `plots.history`.

    Attributes:
        label: name and unit of the loss.
        loss: loss of the minibatch of each iteration.
        validation_iterations: number of completed iterations at each validation.
        validation_elbo: ELBO of each validation, in nats per event: a lower bound on log p, higher
            is better.
    """

    label: str = eqx.field(static=True)
    loss: Float[np.ndarray, " iterations"] = eqx.field(converter=_floats, default=())
    validation_iterations: Int[np.ndarray, " validations"] = eqx.field(
        converter=lambda values: np.asarray(values, np.int64), default=()
    )
    validation_elbo: Float[np.ndarray, " validations"] = eqx.field(converter=_floats, default=())

    def with_losses(self, losses: np.ndarray) -> "History":
        """Return this history, extended by the losses of further iterations."""
        return dataclasses.replace(self, loss=np.concatenate([self.loss, losses]))

    def with_validation(self, iteration: int, elbo: float) -> "History":
        """Return this history, extended by a validation."""
        iterations = np.append(self.validation_iterations, iteration)
        return History(self.label, self.loss, iterations, np.append(self.validation_elbo, elbo))

    def summary(self) -> str:
        """Return the mean of the last hundred losses and the last validation, as text."""
        words = []
        if self.loss.size:
            words.append(f"loss {self.loss[-100:].mean():.4g}")
        if self.validation_elbo.size:
            words.append(f"validation ELBO {self.validation_elbo[-1]:.4g} nats")
        return ", ".join(words)

    def __repr__(self) -> str:
        return f"History({self.loss.size} iterations{', ' * bool(self.loss.size)}{self.summary()})"


@final
class FitResult(eqx.Module):
    """Result of `fit`.

    Attributes:
        model: the fitted model, with the moving average of the weights (or the last weights, if
            they were not averaged).
        last_model: the model with the last weights.
        history: the losses and validations.
        state: the state from which `fit(..., resume=result)` continues.
    """

    model: DiffusionModel
    last_model: DiffusionModel
    history: History
    state: FitState

    def __repr__(self) -> str:
        return f"FitResult({self.model}, {self.history})"


class NonFiniteLossError(RuntimeError):
    """Raised if the loss, or its gradient, becomes NaN or infinite.

    Attributes:
        result: the result before the chunk of iterations in which this happened.
    """

    result: FitResult

    def __init__(self, iteration: int, loss: float, result: FitResult) -> None:
        what = "its gradient is not finite" if np.isfinite(loss) else f"the loss is {loss}"
        super().__init__(
            f"fit stopped at iteration {iteration}: {what}. Likely causes are a learning rate "
            "that is too large for this network (try optimizer=default_optimizer(num_iterations, "
            "learning_rate=1e-4)), gradients that are not clipped, data far from unit scale (see "
            "the warnings), a network that overflows, or a source of data that draws NaN, values "
            "outside the support of the process or invalid labels. This error's `result` is that "
            f"after {int(result.state.iteration)} iterations; once the cause is fixed, it can be "
            "passed as resume=. (The same call would fail again.)"
        )
        self.result = result
