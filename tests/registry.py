"""One row for every implementation: the contracts in the tests run over all of them.

Each dictionary is name -> constructor. Sizes are small, and every number that could hide a mistake
by symmetry (rates, means) is asymmetric.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import diffppl as dp
from diffppl.conditioning import AbstractMethod
from diffppl.fitting.losses import AbstractLoss
from diffppl.model.clipped import Clipped
from diffppl.networks.layers.padding import AbstractPadding
from diffppl.processes import AbstractProcess
from diffppl.schedules import AbstractSchedule

from . import oracles

# num_steps -> schedule
SCHEDULES: dict[str, Callable[[int], AbstractSchedule]] = {
    "linear": dp.schedules.linear,
    "cosine": dp.schedules.cosine,
    "log-snr-linear": dp.schedules.log_snr_linear,
    "reciprocal": dp.schedules.reciprocal,
    "sohl-dickstein": dp.schedules.sohl_dickstein,
    "from-log-snr": lambda num_steps: dp.schedules.Schedule(
        5.0 - 9.0 * np.linspace(1 / num_steps, 1, num_steps) ** 2
    ),
    "learned": lambda num_steps: dp.schedules.Learned(num_steps, beta_1=0.01),
}

# schedule -> process; events have 3 coordinates (see EVENT_SHAPE)
EVENT_SHAPE = (3,)
PROCESSES: dict[str, Callable[[AbstractSchedule], AbstractProcess]] = {
    "gaussian": dp.GaussianDiffusion,
    "bernoulli": lambda schedule: dp.BernoulliDiffusion(schedule, rate=0.2),
    "bernoulli-per-bit": lambda schedule: dp.BernoulliDiffusion(
        schedule, rate=np.array([0.1, 0.5, 0.8])
    ),
    "categorical-uniform": lambda schedule: dp.CategoricalDiffusion(schedule, num_categories=3),
    "categorical-absorbing": lambda schedule: dp.CategoricalDiffusion(
        schedule, num_categories=3, base=dp.Absorbing()
    ),
    "categorical-counts": lambda schedule: dp.CategoricalDiffusion(
        schedule, num_categories=(2, 4, 3)
    ),
    "categorical-counts-absorbing": lambda schedule: dp.CategoricalDiffusion(
        schedule, num_categories=(2, 4, 3), base=dp.Absorbing()
    ),
}
DISCRETE = [name for name in PROCESSES if name != "gaussian"]


def chains(
    processes: Iterable[str] = tuple(PROCESSES), schedules: Iterable[str] = tuple(SCHEDULES)
) -> list[tuple[str, str]]:
    """The names (process, schedule) that go together."""
    return [
        (process, schedule)
        for process in processes
        for schedule in schedules
        # A discrete sample has no derivative, and all must be masked in the end.
        if (process == "gaussian" or schedule != "learned")
        and ("absorbing" not in process or schedule == "reciprocal")
    ]


# () -> prediction of real data
PREDICTIONS: dict[str, Callable[[], dp.predictions.AbstractPrediction]] = {
    "data": dp.predictions.Data,
    "data-lower": lambda: dp.predictions.Data(dp.predictions.LowerVariance()),
    "data-upper": lambda: dp.predictions.Data(dp.predictions.UpperVariance()),
    "data-learned": lambda: dp.predictions.Data(dp.predictions.LearnedVariance()),
    "noise": dp.predictions.Noise,
    "noise-lower": lambda: dp.predictions.Noise(dp.predictions.LowerVariance()),
    "noise-upper": lambda: dp.predictions.Noise(dp.predictions.UpperVariance()),
    "noise-learned": lambda: dp.predictions.Noise(dp.predictions.LearnedVariance()),
    "velocity": dp.predictions.Velocity,
    "velocity-lower": lambda: dp.predictions.Velocity(dp.predictions.LowerVariance()),
    "velocity-upper": lambda: dp.predictions.Velocity(dp.predictions.UpperVariance()),
    "velocity-learned": lambda: dp.predictions.Velocity(dp.predictions.LearnedVariance()),
    "velocity-clipped": lambda: Clipped(
        dp.predictions.Velocity(), jnp.asarray(-9.0), jnp.asarray(9.0)
    ),
    "kernel-moments": dp.predictions.KernelMoments,
    "kernel-moments-printed": lambda: dp.predictions.KernelMoments(dp.predictions.PrintedHead()),
    "kernel-moments-code": lambda: dp.predictions.KernelMoments(dp.predictions.CodeHead()),
}

# key, event_shape, output_shape, num_steps -> network of real data
NETWORKS: dict[str, Callable[..., eqx.Module]] = {
    "mlp": lambda key, event_shape, output_shape, num_steps: dp.networks.MLP(
        event_shape, width=8, depth=2, output_shape=output_shape, key=key
    ),
    "optional-context": lambda key, event_shape, output_shape, num_steps: (
        dp.networks.OptionalContext(
            dp.networks.MLP(
                event_shape,
                width=8,
                depth=2,
                output_shape=output_shape,
                context_shape=(4,),
                key=key,
            ),
            (3,),
        )
    ),
    "rbf": lambda key, event_shape, output_shape, num_steps: dp.networks.RBF(
        event_shape, num_steps, output_shape=output_shape, key=key
    ),
    "sigmoid-mlp": lambda key, event_shape, output_shape, num_steps: dp.networks.SigmoidMLP(
        event_shape, num_steps, width=8, output_shape=output_shape, key=key
    ),
}

# The same, for events that are images without an axis of channels
IMAGE_NETWORKS: dict[str, Callable[..., eqx.Module]] = {
    "multi-scale-conv": lambda key, event_shape, output_shape, num_steps: (
        dp.networks.MultiScaleConv(
            event_shape,
            num_steps,
            conv_channels=4,
            conv_depth=2,
            num_scales=2,
            dense_width=8,
            width=4,
            num_bumps=3,
            output_shape=output_shape,
            key=key,
        )
    ),
    "unet": lambda key, event_shape, output_shape, num_steps: dp.networks.UNet(
        event_shape, (4, 8), num_heads=2, output_shape=output_shape, key=key
    ),
    "unet-rematerialised": lambda key, event_shape, output_shape, num_steps: (
        dp.networks.Rematerialised(
            dp.networks.UNet(
                event_shape,
                (4, 8),
                num_heads=2,
                output_shape=output_shape,
                rematerialise=True,
                key=key,
            )
        )
    ),
    "unet-mixed-precision": lambda key, event_shape, output_shape, num_steps: (
        dp.networks.MixedPrecision(
            dp.networks.UNet(event_shape, (4, 8), num_heads=2, output_shape=output_shape, key=key)
        )
    ),
}


class Known(NamedTuple):
    """A model with a known answer, and the prior that it is the answer for."""

    model: Callable[[AbstractSchedule], dp.DiffusionModel]
    prior: Any  # oracles.Mixture or oracles.Table


MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[0.9, 0.5], [0.5, 0.6]])
WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([[-1.2, 0.4], [0.9, -0.5]])
VARIANCES = np.array([0.05, 0.2])
STATES = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
PROBABILITIES = np.array([0.4, 0.3, 0.2, 0.1])


def listed_states(process: str) -> np.ndarray:
    """The states of a listed prior; the highest of each coordinate, where numbers differ."""
    return STATES * np.array([1, 3, 2]) if "counts" in process else STATES


def _real(network: Callable[[AbstractSchedule], eqx.Module]) -> Callable[..., dp.DiffusionModel]:
    def make(schedule: AbstractSchedule) -> dp.DiffusionModel:
        return dp.DiffusionModel(dp.GaussianDiffusion(schedule), network(schedule), (2,))

    return make


def _listed(process: str) -> Callable[[AbstractSchedule], dp.DiffusionModel]:
    def make(schedule: AbstractSchedule) -> dp.DiffusionModel:
        chain = PROCESSES[process](schedule)
        network = dp.denoisers.Enumerated(chain, listed_states(process), PROBABILITIES)
        return dp.DiffusionModel(chain, network, EVENT_SHAPE)

    return make


KNOWN: dict[str, Known] = {
    "gaussian-diagonal": Known(
        _real(lambda schedule: dp.denoisers.Gaussian(schedule, MEAN, np.diag(COVARIANCE))),
        oracles.Mixture(np.ones(1), MEAN[None], np.diag(np.diag(COVARIANCE))[None]),
    ),
    "gaussian": Known(
        _real(lambda schedule: dp.denoisers.Gaussian(schedule, MEAN, COVARIANCE)),
        oracles.Mixture(np.ones(1), MEAN[None], COVARIANCE[None]),
    ),
    "mixture": Known(
        _real(lambda schedule: dp.denoisers.GaussianMixture(schedule, WEIGHTS, MEANS, VARIANCES)),
        oracles.Mixture(WEIGHTS, MEANS, VARIANCES[:, None, None] * np.eye(2)),
    ),
    **{
        f"listed-{process}": Known(
            _listed(process), oracles.Table(listed_states(process), PROBABILITIES)
        )
        for process in DISCRETE
    },
}

# () -> sampler
SAMPLERS: dict[str, Callable[[], dp.samplers.AbstractSampler]] = {
    "ancestral": dp.samplers.Ancestral,
    "ddim": dp.samplers.DDIM,
    "ddim-eta-1": lambda: dp.samplers.DDIM(eta=1.0),
    "covariance-matched": dp.samplers.CovarianceMatched,
    "dpm-solver": dp.samplers.DPMSolver,
    "probability-flow": dp.samplers.ProbabilityFlow,
}

# () -> twist; ExpectedLikelihood and Enumeration are for bits and categories, Perturbation and
# Mixed for any data
TWISTS: dict[str, Callable[[], dp.twists.AbstractTwist]] = {
    "point-estimate": dp.twists.PointEstimate,
    "tweedie": lambda: dp.twists.MomentMatching(dp.twists.Tweedie()),
    "isotropic": lambda: dp.twists.MomentMatching(dp.twists.Isotropic()),
    "pooled": lambda: dp.twists.PooledMomentMatching(num_references=2, num_directions=1),
    "quadrature": dp.twists.Quadrature,
    "expected-likelihood": dp.twists.ExpectedLikelihood,
    "perturbation": dp.twists.Perturbation,
    "perturbation-linear": lambda: dp.twists.Perturbation(dp.twists.LinearPower()),
    "mixed": dp.twists.Mixed,
    "enumeration": dp.twists.Enumeration,
}

# num_samples -> method that can draw as many
METHODS: dict[str, Callable[[int], AbstractMethod]] = {
    "twisted-smc": dp.TwistedSMC,
    "guidance": lambda num_samples: dp.Guidance(),
    "replacement": lambda num_samples: dp.Replacement(),
    "split-gibbs": lambda num_samples: dp.SplitGibbs(),
}

# () -> reverse chain to condition
REVERSE_CHAINS: dict[str, Callable[[], dp.chains.AbstractChain]] = {
    "model": dp.chains.ModelChain,
    "covariance-matched": dp.chains.CovarianceMatched,
}

# resampling schemes
RESAMPLING: dict[str, Callable[..., Any]] = {
    "systematic": dp.resampling.systematic,
    "stratified": dp.resampling.stratified,
    "multinomial": dp.resampling.multinomial,
}

# num_steps -> loss of real data with an optional context
LOSSES: dict[str, Callable[[int], AbstractLoss]] = {
    "elbo": lambda num_steps: dp.losses.ELBOLoss(),
    "elbo-all-steps": lambda num_steps: dp.losses.ELBOLoss(dp.AllSteps()),
    "weighted": lambda num_steps: dp.losses.WeightedLoss(np.linspace(1.0, 2.0, num_steps - 1)),
    "simple": lambda num_steps: dp.losses.SimpleLoss(),
    "context-dropout": lambda num_steps: dp.losses.ContextDropout(rate=0.3),
}

# () -> estimator of the trace of a Jacobian
TRACES: dict[str, Callable[[], dp.likelihood.AbstractTrace]] = {
    "exact": dp.likelihood.ExactTrace,
    "hutchinson": lambda: dp.likelihood.Hutchinson(num_probes=2),
}

# Mode of numpy.pad -> padding
PADDINGS: dict[str, Callable[[], AbstractPadding]] = {
    "constant": dp.networks.padding.Zeros,
    "edge": dp.networks.padding.Edge,
    "wrap": dp.networks.padding.Periodic,
}

# () -> source of data; images have a shape without symmetry
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 7, 5, 2)).astype(np.uint8)
SOURCES: dict[str, Callable[[], dp.data.AbstractSource]] = {
    "in-memory": lambda: dp.data.InMemory(IMAGES, context=IMAGES[:, 0, 0] / 255),
    "dequantised": lambda: dp.data.Dequantised(IMAGES),
    "flipped": lambda: dp.data.Flipped(IMAGES[..., 0]),
    "crops": lambda: dp.data.Crops(IMAGES, (3, 4)),
    "flipped-crops-dequantised": lambda: dp.data.Dequantised(
        dp.data.Flipped(dp.data.Crops(IMAGES, (3, 4)), channel_axis=-1)
    ),
    "dead-leaves": lambda: dp.data.DeadLeaves((5, 6), (1.0, 4.0)),
    "swiss-roll": lambda: dp.data.SwissRoll(noise=0.05),
}
