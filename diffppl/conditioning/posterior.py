"""The runner: posterior draws of a program, in the shape of `numpyro.infer.MCMC`."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..checks.arguments import check_key, check_size
from ..model.inputs import warn_of_short_chain
from .bound import BoundProgram, check_program
from .choose import choose
from .diagnostics import divergence, find_faults, tail_indices
from .evidence import LogEvidence, pooled_evidence, pooled_indices
from .method import AbstractMethod, Draws, Exactness, check_method
from .prior import draw_prior
from .program import Values
from .runs import Run, log_likelihoods, predict, run_chains
from .summary import print_posterior
from .target import Target
from .validation import check_observations

_NUM_SAMPLES = 1_000


class Posterior:
    """Draws from the posterior of a NumPyro program that contains a diffusion prior.

    Args:
        program: a NumPyro model with at least one `numpyro.sample(name, model())` and at least
            one observed site. Any other continuous latent sites are inferred with it.
        method: how to draw, for instance `TwistedSMC(num_particles=1_000)`. If it is None, each
            `run` chooses one for its data; `method` and `explanation` then give it and the reason.
        num_chains: independent runs of the method, so that R-hat has its usual meaning.
        num_samples: draws of each chain; by default one for each particle of the method, or 1,000.
        progress_bar: whether to show one.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; the message names it.

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
        program: Any,
        method: Any = None,
        *,
        num_chains: int = 4,
        num_samples: int | None = None,
        progress_bar: bool = True,
    ) -> None:
        check_program(program)
        check_method(method)
        draws: Any = num_samples
        if draws is None:
            draws = getattr(method, "num_particles", _NUM_SAMPLES)
        self.program = program
        self.num_chains = check_size("num_chains", num_chains)
        self.num_samples = check_size("num_samples", draws)
        self.progress_bar = progress_bar
        self._method: AbstractMethod | None = method
        self._run: Run | None = None

    def run(self, key: Any, *args: Any, **kwargs: Any) -> None:
        """Draw from the posterior.

        The program is read anew at each call: changed globals, models and data change the answer,
        and compile something only where they change a shape or the computation.

        Args:
            key: a typed JAX key.
            *args: for the program.
            **kwargs: for the program, such as the observations.

        Raises:
            TypeError, ValueError: the program or its data cannot be conditioned on; the message
                names the site and the remedy.
            KeyboardInterrupt: before the first chain was finished. Later, the finished chains are
                kept, with a warning.

        Warns:
            UserWarning: the particles collapsed, weights were NaN, draws are not finite, or the
                chain ends before noise has drowned the data.
        """
        key = check_key(key)
        bound = BoundProgram(self.program, args, kwargs)
        check_observations(bound)
        method, explanation = self._method, "the method was given"
        if method is None:
            method, explanation = choose(Target(bound), self.num_samples)
        target = Target(bound, method.num_steps)
        method = method.resolve(target, self.num_samples)
        draws, report = run_chains(
            key, target, method, self.num_chains, self.num_samples, show=self.progress_bar
        )
        nan_sites = [name for name, share in report.nan.items() if np.max(share) > 0]
        faults = find_faults(draws, target, method, nan_sites)
        places = pooled_indices(key, np.asarray(draws.log_evidence), self.num_samples)
        self._run = Run(
            key, (args, kwargs), target, method, explanation, draws, report, faults, places
        )
        if told := [fault.warning for fault in faults if fault.warning]:
            warnings.warn(" Also, ".join(told), stacklevel=2)
        for name in bound.structure.shapes:
            lost, size = (float(np.max(x[name])) for x in (report.lost, report.size))
            if text := divergence(lambda: self._spare_key(2), target, method, name, lost, size):
                warnings.warn(text, stacklevel=2)
            else:
                warn_of_short_chain(np.max(report.left[name]), f"site {name!r}")

    # What was found -------------------------------------------------------------------------------

    @property
    def _last(self) -> Run:
        if self._run is None:
            raise RuntimeError("this posterior has not been run; call run(key, ...) first.")
        return self._run

    @property
    def method(self) -> AbstractMethod | None:
        """The method of the last run with every setting filled in; before one, the method given."""
        return self._method if self._run is None else self._run.method

    @property
    def explanation(self) -> str:
        """Why the last run used its method."""
        return self._last.explanation

    @property
    def draws(self) -> Draws:
        """Everything that the method returned, with a leading axis of chains."""
        return self._last.draws

    @property
    def exactness(self) -> Exactness:
        """What the draws are draws from."""
        return self._last.method.exactness

    @property
    def num_denoiser_calls(self) -> int:
        """Evaluations of the network in all chains."""
        return round(float(jnp.sum(self._last.report.calls)))

    @property
    def faults(self) -> tuple[str, ...]:
        """What speaks against the last run, in a few words each; empty where nothing does."""
        return tuple(fault.summary for fault in self._last.faults)

    @property
    def pareto_k(self) -> np.ndarray:
        """Pareto k-hat of each chain's last weights: above 0.7 their mean is not to be trusted.

        NaN for a method without weights, and for programs with discrete sites, where the weights
        take few values and no tail can be fit to them. (Vehtari et al. 2024, by ArviZ.)
        """
        return tail_indices(self.draws, self._last.target)

    @property
    def step_stats(self) -> dict[str, Array]:
        """Diagnostics of each chain and step, from t = T down to 0: `(num_chains, steps)`."""
        return self.draws.step_stats

    @property
    def log_evidence(self) -> LogEvidence:
        """log p(y) in nats, pooled over chains, with its Monte Carlo error; see `LogEvidence`.

        NaN for a method that gives no evidence.
        """
        return pooled_evidence(self.draws, "; ".join(self.faults))

    def get_samples(self, *, group_by_chain: bool = False) -> Values:
        """Draws by site name, in the user's units: diffusion, latent, free and deterministic sites.

        All draws have equal weight. Where the chains' estimates of the evidence differ, chains
        count by their evidence: places of chains with too small a share are filled with draws of
        others (`origin_chain` in `sample_stats()` gives the chain of each).

        Returns:
            Shape `(num_chains * num_samples, ...)`, or `(num_chains, num_samples, ...)`.
        """
        samples = self._pooled(self._last.report.samples)
        if group_by_chain:
            return samples
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in samples.items()}

    def _pooled(self, tree: Any) -> Any:
        """Draws of chains, in the places where they count by the evidence of their chain."""
        # By NumPy: JAX compiles the selection once more for every shape.
        chain, draw = np.moveaxis(self._last.places, -1, 0)
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[chain, draw]), tree)

    def sample_stats(self) -> dict[str, Array]:
        """Of each draw that `get_samples` returns, with the chain that it comes from."""
        stats = self._pooled(self.draws.sample_stats)
        return stats | {"origin_chain": jnp.asarray(self._last.places[..., 0])}

    def print_summary(self, prob: float = 0.9) -> None:
        """Print NumPyro's summary of the small sites, the evidence, and how far to trust them."""
        print_posterior(self.get_samples(group_by_chain=True), self.known_entries(), prob)
        print(f"log evidence: {self.log_evidence}")
        if not np.isnan(self.log_evidence.value):
            print(
                "  (± is the Monte Carlo error of this chain's evidence; the errors of the prior "
                "and of the chain's length are not in it)"
            )
        print(f"exactness: {self.exactness.value} ({self.method!r}: {self.explanation})")
        print(f"denoiser calls: {self.num_denoiser_calls:,}")

    def known_entries(self) -> dict[str, np.ndarray]:
        """Masks of the entries that were observed without noise, for the sites that have some."""
        masks = {name: np.asarray(m) for name, (m, _) in self._last.target.bound.known().items()}
        return {name: mask for name, mask in masks.items() if mask.any()}

    def posterior_predictive(self) -> Values:
        """One new draw of every observed site for each posterior draw."""
        return predict(self._spare_key(0), self._last.target, *self._latent_draws())

    def log_likelihood(self) -> Values:
        """Log-density of every observation at each posterior draw, in nats, by site.

        Shape `(num_chains, num_samples, *batch_shape)`. Observed Deltas and factors have none.
        """
        return log_likelihoods(self._last.target, *self._latent_draws())

    def prior(self, num_samples: int = 500) -> Values:
        """Draws of the unobserved and deterministic sites from the prior, in the user's units.

        Raises:
            RuntimeError: something that the program reads has changed since the run.
        """
        run = self._last
        args, kwargs = run.arguments
        bound = BoundProgram(self.program, args, kwargs)
        if not eqx.tree_equal(bound, run.target.bound):
            raise RuntimeError(
                "the program, or values that it reads, changed since run(...), so draws of its "
                "prior would not belong to those of the posterior; run it again."
            )
        num_samples = check_size("num_samples", num_samples)
        drawn = draw_prior(self._spare_key(1), self.program, args, kwargs, num_samples)
        return {name: drawn[name] for name in run.report.samples}

    def _spare_key(self, number: int) -> Array:
        """A key that no chain has used."""
        run = self._last
        return jax.random.split(run.key, self.num_chains + 3)[self.num_chains + number]

    def observed_data(self) -> Values:
        """The values of the observed sites."""
        target = self._last.target
        return target.evaluate(target.bound.origin(), jnp.zeros(target.num_latents)).observed

    def _latent_draws(self) -> tuple[Values, Array]:
        return self._pooled((self.draws.x_0, self.draws.latents))

    def to_arviz(self, *, dims: Any = None, coords: Any = None) -> Any:
        """The run as ArviZ data: `InferenceData` (ArviZ 0.x) or `DataTree` (1.x).

        Groups: posterior, prior, posterior_predictive, log_likelihood, sample_stats (also per
        step, on the dimension `step`), observed_data, and, where entries of a diffusion site were
        observed without noise, constant_data with those entries; the posterior then has the others.
        A "/" in a site's name, as `numpyro.handlers.scope` makes it, becomes ".".

        Args:
            dims: names of the event dimensions, `{site: [names]}`.
            coords: labels of dimensions, `{name: labels}`.
        """
        from ..arviz import from_posterior  # ArviZ takes seconds to import

        return from_posterior(self, dims=dims, coords=coords)

    def __repr__(self) -> str:
        state = "not run" if self._run is None else f"log_evidence={self.log_evidence}"
        return (
            f"Posterior({getattr(self.program, '__name__', 'program')}, {self.method!r}, "
            f"num_chains={self.num_chains}, num_samples={self.num_samples}, {state})"
        )
