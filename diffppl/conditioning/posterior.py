"""The runner: posterior draws of a program, in the shape of `numpyro.infer.MCMC`."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from numpyro.diagnostics import print_summary

from ..checks import check_key, check_size
from ..entry import warn_of_short_chain
from ..progress import bar
from .choose import choose
from .credentials import LogEvidence, pooled_evidence, warn_of_collapse, warn_of_lost_draws
from .inspection import inspect_program
from .method import AbstractMethod, Draws, Exactness
from .program import Program, Values, as_dynamic
from .runs import draw_prior, log_likelihoods, observed_data, predict, run_chains
from .target import Target

_NUM_SAMPLES = 1_000
_SUMMARY_SIZE = 20  # sites with more coordinates are left out of the default summary


class Posterior:
    """Draws from the posterior of a NumPyro program that contains a diffusion prior.

    Args:
        program: a NumPyro model with at least one `numpyro.sample(name, model())` and at least
            one observed site. Any other continuous latent sites are inferred with it.
        method: how to draw, for instance `TwistedSMC(num_particles=1_000)`. If it is None, `run`
            looks at the program and chooses; `explanation` then says what and why.
        num_chains: independent runs of the method, so that R-hat means what it should.
        num_samples: draws of each chain; by default one for each particle of the method, or 1,000.
        progress_bar: whether to show one.

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
        if not callable(program):
            raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")
        if method is not None and not isinstance(method, AbstractMethod):
            raise TypeError(
                f"method is {type(method).__name__}; it must be a method such as "
                "diffppl.TwistedSMC(num_particles=1_000). NumPyro's own kernels go into "
                "numpyro.infer.MCMC."
            )
        draws: Any = num_samples
        if draws is None:
            draws = getattr(method, "num_particles", _NUM_SAMPLES)
        for name, value in (("num_chains", num_chains), ("num_samples", draws)):
            check_size(name, value)
        self.program: Program = program
        self.method: AbstractMethod | None = method
        self.explanation = "the method was given"
        self.num_chains = num_chains
        self.num_samples: int = draws
        self.progress_bar = progress_bar
        self._draws: Draws | None = None
        self._looks: dict[Any, Any] = {}

    def run(self, key: Any, *args: Any, **kwargs: Any) -> None:
        """Draw from the posterior.

        Args:
            key: a typed JAX key.
            *args: for the program.
            **kwargs: for the program, such as the observations.

        Raises:
            ValueError: the program cannot be conditioned; the message names the site.
        """
        key = check_key(key)
        args, kwargs = as_dynamic((args, kwargs))
        sites = inspect_program(self.program, args, kwargs)
        method, explanation, num_ticks = self._look(args, kwargs)
        with bar(self.num_chains * num_ticks, type(method).__name__, show=self.progress_bar):
            draws, samples, ends = run_chains(
                key,
                self.program,
                method,
                args,
                kwargs,
                self.num_chains,
                self.num_samples,
                show=self.progress_bar,
            )
            jax.block_until_ready(draws)
        self.method, self.explanation = method, explanation
        self.num_denoiser_calls = self.num_chains * round(float(ends.calls))
        self._args, self._kwargs, self._key = args, kwargs, key
        self._sites, self._draws, self._samples = sites, draws, samples
        warn_of_collapse(self.step_stats, self.log_evidence)
        for name in sites.diffusion:
            warn_of_lost_draws(ends.lost[name], name)
            warn_of_short_chain(ends.left[name], f"site {name!r}")

    def _look(self, args: Any, kwargs: Any) -> tuple[AbstractMethod, str, int]:
        """Choose the method, let it refuse the program, and count its ticks.

        On shapes alone, and once for each shape of the program's arguments.
        """
        signature = _signature((args, kwargs))
        if signature in self._looks:
            return self._looks[signature]
        holder: list[Any] = []

        def look(dynamic: Any) -> None:
            program, method, args, kwargs = eqx.combine(dynamic, static)
            explanation = self.explanation
            if method is None:
                method, explanation = choose(Target(program, args, kwargs), self.num_samples)
            target = Target(program, args, kwargs, method.num_steps)
            method.check(target, self.num_samples)
            holder.extend([method, explanation, method.num_ticks(target)])

        dynamic, static = eqx.partition((self.program, self.method, args, kwargs), eqx.is_array)
        jax.eval_shape(look, dynamic)
        method, *rest = holder
        found = (method if self.method is None else self.method, *rest)
        self._looks[signature] = found
        return found

    # What was found ---------------------------------------------------------------------------

    @property
    def draws(self) -> Draws:
        """Everything the method returned, with a leading axis of chains."""
        if self._draws is None:
            raise RuntimeError("this posterior has not been run; call run(key, ...) first.")
        return self._draws

    @property
    def exactness(self) -> Exactness:
        """What the draws are draws from."""
        _ = self.draws
        assert self.method is not None
        return self.method.exactness

    @property
    def pareto_k(self) -> np.ndarray:
        """Pareto k-hat of each chain's last weights: above 0.7 their mean is not to be trusted.

        NaN for a method without weights. (Vehtari et al. 2024, by ArviZ.)
        """
        from ..arviz import pareto_k  # ArviZ takes seconds to import

        return pareto_k(np.asarray(self.draws.log_weights))

    @property
    def step_stats(self) -> dict[str, Array]:
        """Diagnostics of each chain and step, from t = T down to 0: `(num_chains, steps)`."""
        return self.draws.step_stats

    @property
    def log_evidence(self) -> LogEvidence:
        """log p(y) in nats, pooled over chains, with its standard error.

        The error is the larger of two: the spread between chains, and what each chain's own
        genealogy says. Both are NaN for a method that gives no evidence.
        """
        return pooled_evidence(self.draws)

    def get_samples(self, *, group_by_chain: bool = False) -> Values:
        """Draws by site name, in the user's units: diffusion sites, other latents, deterministics.

        Shape `(num_chains * num_samples, ...)`, or `(num_chains, num_samples, ...)`.
        """
        _ = self.draws
        if group_by_chain:
            return dict(self._samples)
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in self._samples.items()}

    def print_summary(self, prob: float = 0.9) -> None:
        """Print NumPyro's summary of the small sites, the evidence, and what to make of them."""
        samples = self.get_samples(group_by_chain=True)
        small = {n: np.asarray(x) for n, x in samples.items() if x[0, 0].size <= _SUMMARY_SIZE}
        if small and self.num_samples >= 4:
            print_summary(small, prob=prob, group_by_chain=True)
        for name in samples.keys() - small.keys():
            print(f"{name}: {samples[name].shape[2:]} left out, being large; see to_arviz().")
        print(f"log evidence: {self.log_evidence}")
        print(f"exactness: {self.exactness.value} ({self.method!r}: {self.explanation})")
        print(f"denoiser calls: {self.num_denoiser_calls:,}")

    def posterior_predictive(self) -> Values:
        """One new draw of every observed site for each posterior draw."""
        key = self._spare_key(0)
        return predict(
            key, self.program, self._args, self._kwargs, self._sites, self._latent_samples()
        )

    def log_likelihood(self) -> Values:
        """Log-density of every observation at each posterior draw, in nats, by site.

        Shape `(num_chains, num_samples, *batch_shape)`. Observed Deltas have none.
        """
        return log_likelihoods(
            self.program, self._args, self._kwargs, self._sites, self._latent_samples()
        )

    def prior(self, num_samples: int = 500) -> Values:
        """Draws of the latent sites from the prior, by site, in the user's units."""
        _ = self.draws
        names = (*self._sites.diffusion, *self._sites.latents)
        key = self._spare_key(1)
        return draw_prior(key, self.program, self._args, self._kwargs, names, num_samples)

    def _spare_key(self, number: int) -> Array:
        """A key that no chain has used."""
        return jax.random.split(self._key, self.num_chains + 2)[self.num_chains + number]

    def observed_data(self) -> Values:
        """The values of the observed sites."""
        _ = self.draws
        return observed_data(self.program, self._args, self._kwargs, self._sites)

    def _latent_samples(self) -> Values:
        samples = self.get_samples(group_by_chain=True)
        return {name: samples[name] for name in (*self._sites.diffusion, *self._sites.latents)}

    def to_arviz(self, *, dims: Any = None, coords: Any = None) -> Any:
        """The run as ArviZ data: `InferenceData` (ArviZ 0.x) or `DataTree` (1.x).

        Groups: posterior, prior, posterior_predictive, log_likelihood, sample_stats (also per
        step, on the dimension `step`) and observed_data.

        Args:
            dims: names of the event dimensions, `{site: [names]}`.
            coords: labels of dimensions, `{name: labels}`.
        """
        from ..arviz import from_posterior  # ArviZ takes seconds to import

        return from_posterior(self, dims=dims, coords=coords)

    def __repr__(self) -> str:
        state = "not run" if self._draws is None else f"log_evidence={self.log_evidence}"
        return (
            f"Posterior({getattr(self.program, '__name__', 'program')}, {self.method!r}, "
            f"num_chains={self.num_chains}, num_samples={self.num_samples}, {state})"
        )


def _signature(tree: Any) -> Any:
    """What a pytree is but for the values of its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves
    )
