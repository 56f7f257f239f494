"""The meaning of a network's raw output.

A prediction turns the raw output f(x_t, t) into an *estimate* of x_0. For real data, with
a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t), so that x_t = a x_0 + s eps:

| prediction      | raw output                   | estimate of x_0                        |
| --------------- | ---------------------------- | -------------------------------------- |
| `Data`          | x_0                          | raw                                    |
| `Noise`         | eps                          | (x_t - s raw) / a                      |
| `Velocity`      | v = a eps - s x_0            | a x_t - s raw                          |
| `KernelMoments` | the paper's f_mu and f_Sigma | the x_0 whose kernel has those moments |

and Var[x_0 | x_t] is a separate object, see `diffppl.predictions.variance`: by default estimated
by `fit`. A network that outputs zero makes the reverse kernel exactly equal to the forward one with
`KernelMoments`, and with `Velocity` unless its variance is `LowerVariance`.

For bits and categories `Data` is the only prediction, and its raw output is logits.

A raw output has the shape of the event, with a leading axis of two when the variance is learned,
and a trailing axis of categories when there are any.

References:
    Sohl-Dickstein et al. 2015, section D.2.1 (kernel moments); Ho et al. 2020, section 3.2
    (noise); Salimans and Ho 2022, section 4 (data, velocity).
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ..checks.arguments import check_fields
from ..denoisers.base import AbstractDenoiser
from ..processes import AbstractProcess, GaussianDiffusion, GaussianEstimate
from ..processes.base import Time
from ..processes.support import check_real
from ..schedules import AbstractSchedule
from .variance import (
    AbstractVariance,
    FittedVariance,
    LearnedVariance,
    LowerVariance,
)


class AbstractPrediction(eqx.Module):
    """The meaning of a network's raw output: its shape, and the estimate of x_0 from it."""

    def __check_init__(self) -> None:
        check_fields(self)

    @abc.abstractmethod
    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return the shape of the raw output for one event.

        Raises:
            ValueError: the prediction does not support the process.
        """

    @abc.abstractmethod
    def estimate(self, process: AbstractProcess, raw: Array, x_t: Array, t: Time) -> PyTree:
        """Return the estimate of x_0 that `process.reverse` takes, for one event."""


def _check_real(prediction: "AbstractPrediction", process: AbstractProcess) -> None:
    what = f"prediction={type(prediction).__name__}()"
    check_real(what, process, "; use Data(), whose raw output is then logits")


def _with_channels(variance: AbstractVariance, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the raw output, with a leading axis if the variance has channels."""
    return (1 + variance.channels, *event_shape) if variance.channels else event_shape


def _gaussian_estimate(
    variance: AbstractVariance, schedule: AbstractSchedule, raw: Array, t: Time
) -> tuple[Array, Array]:
    """Split the raw output into the mean's channel and Var[x_0 | x_t]."""
    first, last = (raw[0], raw[1]) if variance.channels else (raw, raw)
    return first, variance.variance(last, schedule.log_snr()[t])


def _amplitudes(schedule: AbstractSchedule, t: Time) -> tuple[Array, Array]:
    """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
    return jnp.sqrt(schedule.alpha_bar()[t]), jnp.sqrt(schedule.one_minus_alpha_bar()[t])


@final
class Data(AbstractPrediction):
    """The raw output is x_0 itself: numbers for real data, logits for bits and categories."""

    variance: AbstractVariance = FittedVariance()

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        if isinstance(process, GaussianDiffusion):
            return _with_channels(self.variance, event_shape)
        if not isinstance(self.variance, LowerVariance | FittedVariance):
            raise ValueError(
                f"prediction=Data(variance={type(self.variance).__name__}()) sets a variance, "
                f"which {type(process).__name__} does not have: its estimate is given by logits "
                "alone. Use Data()."
            )
        categories = process.num_categories
        return event_shape if categories is None else (*event_shape, categories)

    def estimate(self, process: AbstractProcess, raw: Array, x_t: Array, t: Time) -> PyTree:
        del x_t
        if isinstance(process, GaussianDiffusion):
            return GaussianEstimate(*_gaussian_estimate(self.variance, process.schedule, raw, t))
        return process.estimate_from_logits(raw)


@final
class Noise(AbstractPrediction):
    """The raw output is the noise in x_t. Undefined where alpha_bar_t is 0."""

    variance: AbstractVariance = FittedVariance()

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        _check_real(self, process)
        last = process.schedule.alpha_bar()[-1]
        if not isinstance(last, Tracer) and float(last) == 0:
            raise ValueError(
                "prediction=Noise() cannot be used with a schedule that ends at alpha_bar_T = 0: "
                "x_T and the noise do not determine x_0. Use Velocity() or another schedule."
            )
        return _with_channels(self.variance, event_shape)

    def estimate(
        self, process: AbstractProcess, raw: Array, x_t: Array, t: Time
    ) -> GaussianEstimate:
        eps, variance = _gaussian_estimate(self.variance, process.schedule, raw, t)
        signal, noise = _amplitudes(process.schedule, t)
        return GaussianEstimate((x_t - noise * eps) / signal, variance)


@final
class Velocity(AbstractPrediction):
    """The raw output is v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0.

    Well scaled at every noise level; the default for real data.
    """

    variance: AbstractVariance = FittedVariance()

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        _check_real(self, process)
        return _with_channels(self.variance, event_shape)

    def estimate(
        self, process: AbstractProcess, raw: Array, x_t: Array, t: Time
    ) -> GaussianEstimate:
        velocity, variance = _gaussian_estimate(self.variance, process.schedule, raw, t)
        signal, noise = _amplitudes(process.schedule, t)
        return GaussianEstimate(signal * x_t - noise * velocity, variance)


class AbstractMeanHead(eqx.Module):
    """A map from the raw mean z to the paper's f_mu."""

    @abc.abstractmethod
    def mean(self, x_t: Array, raw: Array, sigma2: Array, beta: Array) -> Float[Array, "..."]:
        """Return f_mu(x_t, t)."""


@final
class ConsistentHead(AbstractMeanHead):
    """(x_t - z) sqrt(1 - Sigma) + z: equation 65 with the square root missing in print."""

    def mean(self, x_t: Array, raw: Array, sigma2: Array, beta: Array) -> Float[Array, "..."]:
        del beta
        return (x_t - raw) * jnp.sqrt(1 - sigma2) + raw


@final
class PrintedHead(AbstractMeanHead):
    """(x_t - z) (1 - Sigma) + z: equation 65 as printed.

    At zero output it does *not* equal the forward kernel: on unit-normal data its ELBO starts
    about 1.1 bits per dimension below the null model at T = 1000. For comparison only.
    """

    def mean(self, x_t: Array, raw: Array, sigma2: Array, beta: Array) -> Float[Array, "..."]:
        del beta
        return (x_t - raw) * (1 - sigma2) + raw


@final
class CodeHead(AbstractMeanHead):
    """sqrt(1 - beta_t) x_t + sqrt(beta_t) z: the form in the author's public code."""

    def mean(self, x_t: Array, raw: Array, sigma2: Array, beta: Array) -> Float[Array, "..."]:
        del sigma2
        return jnp.sqrt(1 - beta) * x_t + jnp.sqrt(beta) * raw


@final
class KernelMoments(AbstractPrediction):
    """The paper's parameterisation: f_mu and f_Sigma, the moments of p(x_{t-1} | x_t).

    Two channels (z_mu, z_Sigma): f_Sigma = sigmoid(z_Sigma + logit(beta_t)) (equation 64), f_mu
    by the `head`. The moments are those of one step, so such a model cannot be respaced.
    """

    head: AbstractMeanHead = ConsistentHead()

    def output_shape(
        self, process: AbstractProcess, event_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        _check_real(self, process)
        return (2, *event_shape)

    def estimate(
        self, process: AbstractProcess, raw: Array, x_t: Array, t: Time
    ) -> GaussianEstimate:
        _check_real(self, process)
        beta = process.schedule.beta()[t]
        sigma2 = jax.nn.sigmoid(raw[1] + jax.scipy.special.logit(beta))
        mean = self.head.mean(x_t, raw[0], sigma2, beta)
        # Invert f_mu = b E[x_0 | x_t] + c x_t and f_Sigma = v_t + b^2 Var[x_0 | x_t].
        b, c, variance = process.coefficients(t)  # pyright: ignore[reportAttributeAccessIssue]
        return GaussianEstimate((mean - c * x_t) / b, (sigma2 - variance) / b**2)


def default_prediction(process: AbstractProcess, network: object) -> AbstractPrediction:
    """Return the default prediction of a model."""
    # Analytic denoisers output the moments of x_0.
    if isinstance(network, AbstractDenoiser):
        return Data(LearnedVariance()) if isinstance(process, GaussianDiffusion) else Data()
    return Velocity() if isinstance(process, GaussianDiffusion) else Data()
