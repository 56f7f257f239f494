"""The methods compared on problems with known posteriors. To add one, add a row to `METHODS`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpyro
from numpyro.infer import NUTS

import diffppl as dp

from .problem import Problem


@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments of a row: the problem and the settings of the command line."""

    problem: Problem
    num_steps: int
    num_draws: int

    @property
    def isotropic(self) -> dp.twists.MomentMatching:
        """The twist of PiGDM, with the variance of the prior."""
        return dp.twists.MomentMatching(dp.twists.Isotropic(self.problem.variance))

    def smc(self, particles: int = 1, **options: Any) -> dp.TwistedSMC:
        """Return twisted SMC with `particles` particles per draw."""
        return dp.TwistedSMC(particles * self.num_draws, self.num_steps, **options)


@dataclasses.dataclass(frozen=True)
class Markov:
    """A kernel for NumPyro's MCMC.

    Attributes:
        kernel: function of the program.
        num_warmup: iterations before the draws.
        calls: denoiser calls per iteration; None if unknown.
    """

    kernel: Callable[[Callable[..., None]], Any]
    num_warmup: int
    calls: int | None


def particle_gibbs(setting: Setting, num_particles: int = 64) -> Markov:
    return Markov(
        lambda program: dp.ParticleGibbs(program, num_particles, num_steps=setting.num_steps),
        num_warmup=100,
        calls=num_particles * setting.num_steps,
    )


def nuts_on_the_flow(setting: Setting) -> Markov:
    """Return NUTS on the flow; a single chain does not leave its initial mode."""
    del setting
    config = {"x": dp.FlowReparam()}
    return Markov(
        lambda program: NUTS(numpyro.handlers.reparam(program, config=config)),
        num_warmup=500,
        calls=None,  # the adaptive integrator does not report its calls
    )


def any_problem(problem: Problem) -> bool:
    del problem
    return True


def small(problem: Problem) -> bool:
    return problem.group == "grid"


def masked(problem: Problem) -> bool:
    return problem.group == "mask"


def noisy(problem: Problem) -> bool:
    """Whether the data are real, with noisy observations."""
    return problem.group not in ("heartbeat", "mask")


def alone(problem: Problem) -> bool:
    """Whether x is the only latent, and small enough for a long chain."""
    return problem.group in ("grid", "heartbeat", "mask") or problem.cell.startswith("mixture 8/")


def known_noise(problem: Problem) -> bool:
    """Whether the data are real and there are no other latents."""
    return problem.group in ("mixtures", "grid")


Row = tuple[Callable[[Setting], Any], Callable[[Problem], bool]]

METHODS: dict[str, Row] = {
    "TwistedSMC": (lambda s: s.smc(), any_problem),
    "TwistedSMC:model-chain": (lambda s: s.smc(chain=dp.chains.ModelChain()), noisy),
    "TwistedSMC:isotropic": (lambda s: s.smc(twist=s.isotropic), noisy),
    "TwistedSMC:point": (lambda s: s.smc(twist=dp.twists.PointEstimate()), noisy),
    "TwistedSMC:quadrature": (lambda s: s.smc(twist=dp.twists.Quadrature()), small),
    "TwistedSMC:quadrature x2": (
        lambda s: s.smc(2, twist=dp.twists.Quadrature()),
        small,
    ),
    "Guidance:Tweedie (TMPD)": (
        lambda s: dp.Guidance(dp.twists.MomentMatching(dp.twists.Tweedie()), s.num_steps),
        known_noise,
    ),
    "Guidance:isotropic (PiGDM)": (lambda s: dp.Guidance(s.isotropic, s.num_steps), known_noise),
    "Guidance:point (DPS)": (
        lambda s: dp.Guidance(dp.twists.PointEstimate(), s.num_steps),
        known_noise,
    ),
    "Guidance:Perturbation (2015)": (
        lambda s: dp.Guidance(dp.twists.Perturbation(), s.num_steps),
        known_noise,
    ),
    "SplitGibbs": (lambda s: dp.SplitGibbs(num_steps=s.num_steps), known_noise),
    "TwistedSMC:resampled": (lambda s: s.smc(ess_threshold=1.0), any_problem),
    "ParticleGibbs": (particle_gibbs, alone),
    "NUTS, FlowReparam": (nuts_on_the_flow, small),
    "Replacement": (lambda s: dp.Replacement(num_steps=s.num_steps), masked),
    "RePaint": (lambda s: dp.Replacement(10, num_steps=s.num_steps), masked),
}
