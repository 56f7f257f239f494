"""Posterior inference for a program, with the interface of `numpyro.infer.MCMC`."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..arviz import ArvizData, Coords, Dims, from_posterior
from ..checks.arguments import check_key, check_size
from ..model.inputs import warn_of_residual_signal
from .bound import BoundProgram, check_program
from .choose import choose
from .diagnostics import divergence, find_faults
from .evidence import LogEvidence, pooled_evidence, pooled_indices
from .method import AbstractMethod, Draws, Exactness, check_method
from .prior import draw_prior
from .program import Program, Values
from .runs import Run, log_likelihoods, predict, run_chains
from .summary import print_posterior, print_run, run_attributes
from .target import Target
from .validation import check_observations

_NUM_SAMPLES = 1_000


class Posterior:
    """Posterior of a NumPyro program that contains a diffusion prior.

    Args:
        program: a NumPyro model with at least one `numpyro.sample(name, model())` and at least
            one observed site. All other continuous latent sites are inferred jointly.
        method: the inference method, for instance `TwistedSMC(num_particles=1_000)`. If None, each
            `run` selects one for its data; `method` and `explanation` return it and the reason.
        num_chains: number of independent runs of the method, as required by R-hat.
        num_samples: draws per chain; defaults to the number of particles of the method, or 1,000.
        progress_bar: whether to show a progress bar.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.

    Example:
        >>> def program(y=None):
        ...     x = numpyro.sample("x", model())
        ...     numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)
        >>> posterior = dp.Posterior(program, dp.TwistedSMC(num_particles=1_000))
        >>> posterior.run(jax.random.key(0), y=0.3)
        >>> posterior.print_summary()
        >>> idata = posterior.to_arviz()
    """

    def __init__(
        self,
        program: Program,
        method: AbstractMethod | None = None,
        *,
        num_chains: int = 4,
        num_samples: int | None = None,
        progress_bar: bool = True,
    ) -> None:
        check_program(program)
        check_method(method)
        if num_samples is None:
            num_samples = getattr(method, "num_particles", _NUM_SAMPLES)
        self.program = program
        self.num_chains = check_size("num_chains", num_chains)
        self.num_samples = check_size("num_samples", num_samples)
        self.progress_bar = progress_bar
        self._method: AbstractMethod | None = method
        self._run: Run | None = None

    def run(self, key: Array, *args: object, **kwargs: object) -> None:
        """Draw from the posterior.

        The program is traced again at each call, so that changes of globals, models and data take
        effect. Only changes of a shape or of the computation cause a new compilation.

        Args:
            key: a typed JAX key.
            *args: positional arguments of the program.
            **kwargs: keyword arguments of the program, such as the observations.

        Raises:
            TypeError, ValueError: the program or its data cannot be conditioned on; the message
                names the site and the remedy.
            KeyboardInterrupt: the run was interrupted before its first chain was finished. After
                that, an interrupt keeps the finished chains and issues a warning.

        Warns:
            UserWarning: the particles collapsed, weights were NaN, draws are not finite, or the
                chain is too short, so that x_T still depends on x_0.
        """
        key = check_key(key)
        bound = BoundProgram(self.program, args, kwargs)
        check_observations(bound)
        method, explanation = self._method, "the method was given"
        if method is None:
            method, explanation = choose(Target(bound), self.num_samples)
        target = Target(bound, method.num_steps)  # the method may use a respaced chain
        method = method.resolve(target, self.num_samples)
        draws, report = run_chains(
            key, target, method, self.num_chains, self.num_samples, show=self.progress_bar
        )
        nan_sites = [name for name, share in report.nan.items() if np.max(share) > 0]
        faults = find_faults(draws, target, method, nan_sites)
        pooled = pooled_indices(key, np.asarray(draws.log_evidence), self.num_samples)
        self._run = Run(
            key, (args, kwargs), target, method, explanation, draws, report, faults, pooled
        )
        if messages := [fault.warning for fault in faults if fault.warning]:
            warnings.warn(" Also, ".join(messages), stacklevel=2)
        for name in bound.structure.shapes:
            nonfinite, rms = (float(np.max(x[name])) for x in (report.nonfinite, report.rms))
            if text := divergence(lambda: self._spare_key(2), target, method, name, nonfinite, rms):
                warnings.warn(text, stacklevel=2)
            else:
                warn_of_residual_signal(np.max(report.signal[name]), f"site {name!r}")

    # Results --------------------------------------------------------------------------------------

    @property
    def _last(self) -> Run:
        if self._run is None:
            raise RuntimeError("this posterior has not been run; call run(key, ...) first.")
        return self._run

    @property
    def method(self) -> AbstractMethod | None:
        """The resolved method of the last run; before a run, the `method` argument."""
        return self._method if self._run is None else self._run.method

    @property
    def explanation(self) -> str:
        """The reason for the choice of the method of the last run."""
        return self._last.explanation

    @property
    def draws(self) -> Draws:
        """All outputs of the method, with a leading axis of chains."""
        return self._last.draws

    @property
    def exactness(self) -> Exactness:
        """The distribution that the draws target."""
        return self._last.method.exactness

    @property
    def num_denoiser_calls(self) -> int:
        """Number of network evaluations in all chains."""
        return self._last.num_denoiser_calls

    @property
    def faults(self) -> tuple[str, ...]:
        """Problems detected in the last run, a short phrase for each; empty if there are none."""
        return self._last.fault_names

    @property
    def pareto_k(self) -> np.ndarray:
        """Pareto k-hat of the final weights of each chain; above 0.7 their mean is unreliable.

        NaN for methods without weights, and for programs with discrete sites, whose weights take
        too few values for a fit of the tail. (Vehtari et al. 2024, computed by ArviZ.)
        """
        return self._last.pareto_k

    @property
    def step_stats(self) -> dict[str, Array]:
        """Diagnostics by chain and step, from t = T down to 0, shape `(num_chains, steps)`."""
        return self.draws.step_stats

    @property
    def log_evidence(self) -> LogEvidence:
        """log p(y) in nats, pooled over chains, with its Monte Carlo error; see `LogEvidence`.

        NaN for methods that do not estimate the evidence.
        """
        return pooled_evidence(self.draws, "; ".join(self.faults))

    def get_samples(self, *, group_by_chain: bool = False) -> Values:
        """Return draws in the user's units: diffusion, latent, free and deterministic sites.

        All draws have equal weight. If the evidence estimates of the chains differ, chains are
        weighted by their evidence: draws of chains with too small a weight are replaced by draws
        of other chains (`origin_chain` in `sample_stats()` is the chain of each draw).

        Returns:
            Arrays by site name, of shape `(num_chains * num_samples, ...)`, or of shape
            `(num_chains, num_samples, ...)` if `group_by_chain`.
        """
        samples = self._pooled(self._last.report.samples)
        if group_by_chain:
            return samples
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in samples.items()}

    def _pooled(self, tree: PyTree) -> PyTree:
        """Select draws such that each chain is weighted by its evidence."""
        # Indexed by NumPy, since JAX would compile the gather for every shape.
        chain, draw = np.moveaxis(self._last.pooled, -1, 0)
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[chain, draw]), tree)

    def sample_stats(self) -> dict[str, Array]:
        """Return statistics of each draw of `get_samples`, including its chain of origin."""
        stats = self._pooled(self.draws.sample_stats)
        return stats | {"origin_chain": jnp.asarray(self._last.pooled[..., 0])}

    def print_summary(self, prob: float = 0.9) -> None:
        """Print NumPyro's summary of the small sites, the evidence, the method and its cost."""
        print_posterior(self.get_samples(group_by_chain=True), self.noiseless_entries(), prob)
        print_run(self._last, self.log_evidence)

    def noiseless_entries(self) -> dict[str, np.ndarray]:
        """Return masks of the noiselessly observed entries, for the sites that have any."""
        masks = {
            name: np.asarray(m)
            for name, (m, _) in self._last.target.bound.observed_entries().items()
        }
        return {name: mask for name, mask in masks.items() if mask.any()}

    def posterior_predictive(self) -> Values:
        """Draw every observed site once for each posterior draw."""
        return predict(self._spare_key(0), self._last.target, *self._latent_draws())

    def log_likelihood(self) -> Values:
        """Return the log-density of the observations at each posterior draw, in nats, by site.

        Shape `(num_chains, num_samples, *batch_shape)`. Observed Deltas and factors are excluded.
        """
        return log_likelihoods(self._last.target, *self._latent_draws())

    def prior(self, num_samples: int = 500) -> Values:
        """Draw the unobserved and deterministic sites from the prior, in the user's units.

        Raises:
            RuntimeError: the program, or a value that it reads, has changed since the run.
        """
        run = self._last
        args, kwargs = run.arguments
        # The program is executed again, so it must be the one that was conditioned.
        bound = BoundProgram(self.program, args, kwargs)
        if not eqx.tree_equal(bound, run.target.bound):
            raise RuntimeError(
                "the program, or values that it reads, changed since run(...), so draws of its "
                "prior would be inconsistent with the posterior draws; call run(...) again."
            )
        num_samples = check_size("num_samples", num_samples)
        drawn = draw_prior(self._spare_key(1), self.program, args, kwargs, num_samples)
        return {name: drawn[name] for name in run.report.samples}

    def _spare_key(self, number: int) -> Array:
        """Return one of three keys that no chain uses."""
        run = self._last
        return jax.random.split(run.key, self.num_chains + 3)[self.num_chains + number]

    def observed_data(self) -> Values:
        """Return the values of the observed sites."""
        target = self._last.target
        return target.evaluate(target.bound.origin(), jnp.zeros(target.num_latents)).observed

    def _latent_draws(self) -> tuple[Values, Array]:
        return self._pooled((self.draws.x_0, self.draws.latents))

    def to_arviz(self, *, dims: Dims = None, coords: Coords = None) -> ArvizData:
        """Convert the run to ArviZ: `InferenceData` (ArviZ 0.x) or `DataTree` (1.x).

        Groups: posterior, prior, posterior_predictive, log_likelihood, sample_stats (also per
        step, with dimension `step`), and observed_data. Entries of a diffusion site that were
        observed without noise are in constant_data and not in posterior. A "/" in a site name, as
        created by `numpyro.handlers.scope`, is replaced by ".".

        Args:
            dims: names of the event dimensions, `{site: [names]}`.
            coords: coordinates of the dimensions, `{name: labels}`.
        """
        groups = {
            "prior": self.prior(),
            "log_likelihood": self.log_likelihood(),
            "sample_stats": self.sample_stats(),
            "observed_data": self.observed_data(),
            "posterior_predictive": self.posterior_predictive(),
        }
        return from_posterior(
            self.get_samples(group_by_chain=True),
            groups=groups,
            step_stats=self.step_stats,
            noiseless=self.noiseless_entries(),
            attributes=run_attributes(self._last, self.log_evidence),
            dims=dims,
            coords=coords,
        )

    def __repr__(self) -> str:
        state = "not run" if self._run is None else f"log_evidence={self.log_evidence}"
        return (
            f"Posterior({getattr(self.program, '__name__', 'program')}, {self.method!r}, "
            f"num_chains={self.num_chains}, num_samples={self.num_samples}, {state})"
        )
