"""Diffusion probabilistic models as priors in NumPyro programs.

    model = dp.DiffusionModel(process, network, event_shape)    define a model
    result = dp.fit(key, model, data, ...)                      fit it to data
    dp.sample, dp.elbo                                          sample and evaluate it
    numpyro.sample("x", model())                                use it in a program
    dp.Posterior(program, method, ...)                          condition the program

Based on Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, "Deep Unsupervised Learning using
Nonequilibrium Thermodynamics", ICML 2015.
"""

from . import (
    data,
    denoisers,
    likelihood,
    networks,
    plots,
    predictions,
    processes,
    samplers,
    schedules,
)
from .calibration import Calibration, calibrate
from .conditioning import (
    ChainReparam,
    Exactness,
    FlowReparam,
    Guidance,
    LogEvidence,
    ParticleGibbs,
    Posterior,
    Replacement,
    SplitGibbs,
    TwistedSMC,
    chains,
    resampling,
    twists,
)
from .fitting import Checkpoints, FitResult, NonFiniteLossError, default_optimizer, fit, losses
from .io import LoadError, load, save
from .likelihood import (
    EntropyBounds,
    Estimate,
    PathWork,
    entropy_bounds,
    flow_likelihood,
    flow_log_density,
    importance_bound,
    jarzynski,
)
from .likelihood.elbo import AllSteps, SampledSteps, elbo
from .model import DiffusionModel, Scaling, clipped, guided, respaced
from .model.probability_flow import Integrator
from .processes import (
    Absorbing,
    BernoulliDiffusion,
    CategoricalDiffusion,
    GaussianDiffusion,
    Uniform,
)
from .samplers import sample, sample_path

__version__ = "0.1.0"

__all__ = [
    "Absorbing",
    "AllSteps",
    "BernoulliDiffusion",
    "Calibration",
    "CategoricalDiffusion",
    "ChainReparam",
    "Checkpoints",
    "DiffusionModel",
    "EntropyBounds",
    "Estimate",
    "Exactness",
    "FitResult",
    "FlowReparam",
    "GaussianDiffusion",
    "Guidance",
    "Integrator",
    "LoadError",
    "LogEvidence",
    "NonFiniteLossError",
    "ParticleGibbs",
    "PathWork",
    "Posterior",
    "Replacement",
    "SampledSteps",
    "Scaling",
    "SplitGibbs",
    "TwistedSMC",
    "Uniform",
    "calibrate",
    "chains",
    "clipped",
    "data",
    "default_optimizer",
    "denoisers",
    "elbo",
    "entropy_bounds",
    "fit",
    "flow_likelihood",
    "flow_log_density",
    "guided",
    "importance_bound",
    "jarzynski",
    "likelihood",
    "load",
    "losses",
    "networks",
    "plots",
    "predictions",
    "processes",
    "resampling",
    "respaced",
    "sample",
    "sample_path",
    "samplers",
    "save",
    "schedules",
    "twists",
]
