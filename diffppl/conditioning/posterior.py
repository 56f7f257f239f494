"""The runner: posterior draws of a program, in the shape of `numpyro.infer.MCMC`."""

import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.diagnostics import print_summary

from ..checks import check_key
from ..progress import bar, tick
from .method import AbstractMethod, Draws, Exactness
from .program import (
    Program,
    Sites,
    Values,
    as_dynamic,
    inspect_program,
    predictive,
    run_program,
)
from .target import Target

_FEW_PARTICLES = 10  # an effective sample size below this is called a collapse
_SUMMARY_SIZE = 20  # sites with more coordinates are left out of the default summary


class LogEvidence(NamedTuple):
    """log p(y) in nats, and its standard error."""

    value: float
    standard_error: float

    def __repr__(self) -> str:
        return f"{self.value:.3f} ± {self.standard_error:.3f} nats"


class Posterior:
    """Draws from the posterior of a NumPyro program that contains a diffusion prior.

    Args:
        program: a NumPyro model with at least one `numpyro.sample(name, model())` and at least
            one observed site. Any other continuous latent sites are inferred with it.
        method: how to draw, for instance `TwistedSMC(num_particles=1_000)`.
        num_chains: independent runs of the method, so that R-hat means what it should.
        num_samples: draws of each chain.
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
        method: Any,
        *,
        num_chains: int = 4,
        num_samples: int = 1_000,
        progress_bar: bool = True,
    ) -> None:
        if not callable(program):
            raise TypeError(f"program is {type(program).__name__}; it must be a NumPyro program.")
        if not isinstance(method, AbstractMethod):
            raise TypeError(
                f"method is {type(method).__name__}; it must be a method such as "
                "diffppl.TwistedSMC(num_particles=1_000). NumPyro's own kernels go into "
                "numpyro.infer.MCMC."
            )
        for name, value in (("num_chains", num_chains), ("num_samples", num_samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more.")
        self.program: Program = program
        self.method: AbstractMethod = method
        self.num_chains = num_chains
        self.num_samples = num_samples
        self.progress_bar = progress_bar
        self._draws: Draws | None = None

    def run(self, key: Any, *args: Any, **kwargs: Any) -> None:
        """Draw from the posterior.

        Args:
            key: a typed JAX key.
            *args: for the program.
            **kwargs: for the program, such as the observations.

        Raises:
            ValueError: the program cannot be conditioned; the message names the site.
        """
        check_key(key)
        args, kwargs = as_dynamic((args, kwargs))
        sites = inspect_program(self.program, args, kwargs)
        num_steps = self._check(args, kwargs)
        total = self.num_chains * num_steps
        with bar(total, type(self.method).__name__, show=self.progress_bar):
            draws, samples = _run(
                key,
                self.program,
                self.method,
                args,
                kwargs,
                self.num_chains,
                self.num_samples,
                self.progress_bar,
            )
            jax.block_until_ready(draws)
        self._args, self._kwargs, self._key = args, kwargs, key
        self._sites, self._draws, self._samples = sites, draws, samples
        self._warn()

    def _check(self, args: Any, kwargs: Any) -> int:
        """Let the method refuse the program, on shapes alone; the number of steps it will take."""
        holder: list[int] = []

        def look(dynamic: Any) -> None:
            program, method, args, kwargs = eqx.combine(dynamic, static)
            target = Target(program, args, kwargs, method.num_steps)
            method.check(target, self.num_samples)
            holder.append(target.num_steps)

        dynamic, static = eqx.partition((self.program, self.method, args, kwargs), eqx.is_array)
        jax.eval_shape(look, dynamic)
        return holder[0]

    def _warn(self) -> None:
        ess = np.asarray(self.step_stats.get("ess", np.full((1, 1), np.inf)))
        chain, step = np.unravel_index(np.argmin(ess), ess.shape)
        if ess[chain, step] < _FEW_PARTICLES:
            warnings.warn(
                f"the particles collapsed: in chain {chain} the effective sample size fell to "
                f"{ess[chain, step]:.1f} at step t = {ess.shape[1] - 1 - step}. Use more "
                "particles, a twist that spreads its likelihood (MomentMatching), or more steps "
                "of the chain.",
                stacklevel=3,
            )
        if not math.isfinite(self.log_evidence.value):
            warnings.warn(
                "the evidence is not finite: no particle agrees with the observations. Check that "
                "the observations are possible under the program.",
                stacklevel=3,
            )

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
        return self.method.exactness

    @property
    def step_stats(self) -> dict[str, Array]:
        """Diagnostics of each chain and step, from t = T down to 0: `(num_chains, steps)`."""
        return self.draws.step_stats

    @property
    def log_evidence(self) -> LogEvidence:
        """log p(y) in nats, pooled over chains, with its standard error.

        The error is the larger of two: the spread between chains, and what each chain's own
        genealogy says.
        """
        log_z = np.asarray(self.draws.log_evidence, dtype=np.float64)
        relative = np.exp(log_z - log_z.max()) if np.isfinite(log_z.max()) else np.ones_like(log_z)
        value = log_z.max() + np.log(relative.mean())
        shares = relative / relative.sum()
        within = np.sum(shares**2 * np.asarray(self.draws.evidence_variance))
        n = log_z.size
        between = np.sum((shares - 1 / n) ** 2) * n / (n - 1) if n > 1 else 0.0
        return LogEvidence(float(value), float(np.sqrt(max(within, between))))

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
        print(f"exactness: {self.exactness.value} ({self.method!r})")

    def posterior_predictive(self) -> Values:
        """One new draw of every observed site for each posterior draw."""
        samples = self.get_samples(group_by_chain=True)
        latent = {n: samples[n] for n in (*self._sites.diffusion, *self._sites.latents)}
        key = jax.random.fold_in(self._key, 1)
        return _predict(key, self.program, self._args, self._kwargs, self._sites, latent)

    def to_arviz(self, *, dims: Any = None, coords: Any = None) -> Any:
        """The run as ArviZ data: `InferenceData` (ArviZ 0.x) or `DataTree` (1.x).

        Groups: posterior, sample_stats (also per step, on the dimension `step`), observed_data
        and posterior_predictive.

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


@eqx.filter_jit
def _run(
    key: Array,
    program: Program,
    method: AbstractMethod,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_chains: int,
    num_samples: int,
    show: bool,  # noqa: FBT001
) -> tuple[Draws, Values]:
    """All chains, one after the other, and their draws by site name in the user's units."""
    target = Target(program, args, kwargs, method.num_steps)
    advance = tick if show else lambda: None

    def chain(key: Array) -> tuple[Draws, Values]:
        draws = method.draw(key, target, num_samples, advance)
        return draws, jax.vmap(lambda x_0, u: _by_name(target, x_0, u))(draws.x_0, draws.latents)

    return jax.lax.map(chain, jax.random.split(key, num_chains))


def _by_name(target: Target, x_0: Values, latents: Array) -> Values:
    values = {**target.to_user(x_0), **target.constrain(latents)}
    if target.sites.deterministic:
        trace = run_program(target.program, target.args, target.kwargs, values)
        values |= {name: trace[name]["value"] for name in target.sites.deterministic}
    return values


@eqx.filter_jit
def _predict(
    key: Array,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: Sites,
    values: Values,
) -> Values:
    draw = predictive(program, args, kwargs, sites)
    num_chains, num_samples = next(iter(values.values())).shape[:2]
    keys = jax.random.split(key, (num_chains, num_samples))
    return jax.vmap(jax.vmap(draw))(keys, values)


def observed_data(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], sites: Sites
) -> Values:
    """The values of the observed sites."""
    trace = run_program(program, args, kwargs, {})
    return {
        name: jnp.asarray(trace[name]["value"])
        for name in sites.observed
        if np.size(trace[name]["value"])
    }
