"""Particle Gibbs as a kernel for NumPyro's MCMC; see `conditional_smc` for the algorithm."""

import copy
from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer.mcmc import MCMCKernel
from numpyro.primitives import Messenger

from ..checks.arguments import check_instance, check_size
from ..model import DiffusionModel
from .bound import BoundProgram, check_program
from .conditional_smc import conditional_smc
from .program import Program, Site, Values, diffusion_distribution
from .target import Target
from .twists import AbstractTwist
from .twists.default import resolved_twist
from .validation import check_observations


class ParticleGibbsState(NamedTuple):
    """State of the Markov chain.

    `z` holds x_0 of every diffusion site in the user's units; `path` holds x_T, .., x_1, x_0 in
    model units; `renewed` is the share of the path that the last iteration replaced.
    """

    z: Values
    path: Values
    renewed: Float[Array, ""]
    rng_key: Array


@final
class ParticleGibbs(MCMCKernel):
    """An MCMC kernel for the diffusion sites of a program, exact for any number of particles.

    Use it in `numpyro.infer.MCMC` where diffusion sites are the only latents, and otherwise as a
    block of `numpyro.infer.Gibbs`, with NUTS for the other latents. It targets the posterior of the
    model's own chain. Each iteration runs from noise to data, so it can change modes, and does so
    more often the more of the path is renewed: for five modes of a mixture and 100 steps, 16
    particles renew 30 % of the path and change the mode about every hundred iterations, and 64
    particles renew 67 % and change it every few iterations.

    Args:
        program: a NumPyro model with at least one diffusion site.
        num_particles: number of particles, 2 or more.
        num_steps: respace the chain to this number of steps; None keeps all of them.
        twist: as in `TwistedSMC`; None selects `MomentMatching()` or `ExpectedLikelihood()`.

    Example:
        >>> mcmc = MCMC(dp.ParticleGibbs(program), num_warmup=50, num_samples=1_000)
        >>> mcmc.run(jax.random.key(0), y=0.3)
        >>> az.from_numpyro(mcmc)

        With other latents, pass `kernel.model` to NUTS. It omits the prior density of x, which is
        constant in that block:

        >>> kernel = dp.ParticleGibbs(program)
        >>> MCMC(Gibbs([(kernel, ["x"]), (NUTS(kernel.model), None)]), num_warmup=200, ...)
    """

    sample_field = "z"  # pyright: ignore

    def __init__(
        self,
        program: Program,
        num_particles: int = 16,
        *,
        num_steps: int | None = None,
        twist: AbstractTwist | None = None,
    ) -> None:
        check_program(program)
        num_particles = check_size("num_particles", num_particles, least=2)
        num_steps = num_steps if num_steps is None else check_size("num_steps", num_steps)
        twist = twist if twist is None else check_instance("twist", twist, AbstractTwist)
        self._original: Program = program
        self._program: Program = program
        self._model: Program = WithoutDiffusionPriors(program)
        self.num_particles = num_particles
        self.num_steps = num_steps
        self.twist = twist
        self._sample: Callable[..., ParticleGibbsState] | None = None

    @property
    def model(self) -> Program:
        """The program without the densities of its diffusion sites, for the other Gibbs blocks."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        """The fields that MCMC collects."""
        return (self.sample_field,)

    def wrap_model(self, wrapper: Callable[[Program], Program]) -> "ParticleGibbs":
        """Return the kernel for `wrapper(program)`."""
        kernel = copy.copy(self)
        kernel._program, kernel._model = wrapper(self._program), wrapper(self._model)
        return kernel

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Values | None,
        model_args: tuple,
        model_kwargs: dict | None,
    ) -> ParticleGibbsState:
        """Draw a path of the forward chain from `init_params`, or from a draw of the prior."""
        del num_warmup
        args, kwargs = model_args or (), model_kwargs or {}
        self._check(args, kwargs)

        def single(key: Array, x_0: Values | None) -> ParticleGibbsState:
            return self._init(key, x_0, args, kwargs)

        # One chain, or one key per chain where MCMC vectorises over chains.
        if jnp.ndim(rng_key) == (0 if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) else 1):
            self._sample = self._step
            return single(rng_key, init_params)
        self._sample = jax.vmap(self._step, in_axes=(0, None, None))
        return jax.vmap(single)(rng_key, init_params)

    def _check(self, args: tuple, kwargs: dict) -> None:
        """Raise ValueError for unsupported programs, before any draw."""
        bound = BoundProgram(self._program, args, kwargs)
        structure = bound.structure
        if structure.latents:
            raise ValueError(
                f"ParticleGibbs draws diffusion sites only, but the program has the latent "
                f"site {structure.latents[0]!r}: use numpyro.infer.Gibbs([(kernel, "
                f"{list(structure.shapes)}), (NUTS(kernel.model), None)])."
            )
        if structure.num_stages > 1:
            name = structure.stage(1)[0]
            raise ValueError(
                f"ParticleGibbs draws all diffusion sites jointly, but the network or context of "
                f"site {name!r} depends on another one; use TwistedSMC()."
            )
        if self._program is not self._original:
            # With a network that depends on latents of another block, NUTS would target the
            # density of the probability flow, and this kernel that of the chain.
            kwargs = {name: value for name, value in kwargs.items() if name != "_gibbs_sites"}
            for site in BoundProgram(self._original, args, kwargs).structure.diffusion:
                if site.latents:
                    raise ValueError(
                        f"the network or context of site {site.name!r} depends on the latent site "
                        f"{site.latents[0]!r}, for which ParticleGibbs and another Gibbs block "
                        "would target different posteriors; use TwistedSMC()."
                    )
        target = Target(bound, self.num_steps)
        resolved_twist(self.twist, target)
        # The values of observations are available unless MCMC traces `init`.
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(bound)):
            check_observations(bound)

    def _init(
        self, key: Array, x_0: Values | None, args: tuple, kwargs: dict
    ) -> ParticleGibbsState:
        key_prior, key_path, key_next = jax.random.split(key, 3)
        target = self._target(args, kwargs)
        if x_0 is None:
            seeded = handlers.seed(self._program, key_prior)
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            x_0 = {name: trace[name]["value"] for name in target.models}
        values = target.map_sites(lambda model, x: model.to_model(x), dict(x_0))
        values = target.clamp(values)

        def path(model: DiffusionModel, x: Array, key: Array) -> Array:
            def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
                key, t = inputs
                x = jnp.asarray(model.process.transition(x, t).sample(key), model.process.dtype)
                return x, x

            times = jnp.arange(1, target.num_steps + 1)
            keys = jax.random.split(key, target.num_steps)
            _, xs = jax.lax.scan(step, x, (keys, times))
            # Paths are stored in the order of the reverse chain.
            return jnp.concatenate([xs[::-1], x[None]])

        paths = target.map_sites(path, values, target.split_key(key_path))
        return ParticleGibbsState(_to_user(target, values), paths, jnp.ones(()), key_next)

    def sample(
        self, state: ParticleGibbsState, model_args: tuple, model_kwargs: dict | None
    ) -> ParticleGibbsState:
        """Draw a new path from the old one."""
        assert self._sample is not None, "init must be called before sample."
        return self._sample(state, model_args or (), model_kwargs or {})

    def refresh(
        self, state: ParticleGibbsState, model_args: tuple, model_kwargs: dict | None
    ) -> ParticleGibbsState:
        """Return the state unchanged: nothing cached depends on the other blocks."""
        del model_args, model_kwargs
        return state

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict | None
    ) -> Callable[[Values], Values]:
        """Return a function that adds the deterministic sites of the program."""
        args, kwargs = model_args or (), model_kwargs or {}

        def add(z: Values) -> Values:
            target = self._target(args, kwargs)
            x_0 = target.map_sites(lambda model, x: model.to_model(x), z)
            values = target.evaluate(x_0, jnp.zeros(0)).values
            return z | {name: values[name] for name in target.structure.deterministic}

        return add

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict | None
    ) -> Callable[[Values], Values]:
        """Return the identity: values are already in their support."""
        del model_args, model_kwargs
        return lambda z: z

    def get_diagnostics_str(self, state: ParticleGibbsState) -> str:
        """Return the share of the path that the last iteration renewed, as text."""
        return f"{100 * float(jnp.mean(state.renewed)):.0f} % of the path renewed"

    def _target(self, args: tuple, kwargs: dict) -> Target:
        return Target(BoundProgram(self._program, args, kwargs), self.num_steps)

    def _step(self, state: ParticleGibbsState, args: tuple, kwargs: dict) -> ParticleGibbsState:
        target = self._target(args, kwargs)
        key, key_next = jax.random.split(state.rng_key)
        twist = resolved_twist(self.twist, target)
        path, renewed = conditional_smc(key, target, twist, state.path, self.num_particles)
        x_0 = {name: x[-1] for name, x in path.items()}
        return ParticleGibbsState(_to_user(target, x_0), path, renewed, key_next)


def _to_user(target: Target, x_0: Values) -> Values:
    values = target.evaluate(x_0, jnp.zeros(0)).values
    return {name: values[name] for name in x_0}


@final
class WithoutDiffusionPriors:
    """A program whose diffusion sites contribute no density.

    It compares equal to the program that it wraps, as `numpyro.infer.Gibbs` requires of its blocks.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the program with masked diffusion sites."""
        with _WithoutPriors():
            return self.program(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return other is self or other == self.program

    def __hash__(self) -> int:
        return hash(self.program)


@final
class _WithoutPriors(Messenger):
    def process_message(self, msg: Site) -> None:
        if msg["type"] == "sample":
            if diffusion_distribution(msg["fn"]) is not None:
                msg["fn"] = msg["fn"].mask(mask=False)
