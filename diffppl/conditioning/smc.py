"""Twisted sequential Monte Carlo.

Particles follow the reverse chain. Each step is guided towards the observations by a twist psi_t
and weighted for the difference between the guided kernel q and the model's kernel p:

    w_T     = psi_T(x_T, u) / q(u)
    w_{t-1} = w_t  p(x_{t-1} | x_t) psi_{t-1}(x_{t-1}, u) / ( q(x_{t-1} | x_t) psi_t(x_t, u) ),
    psi_0   = r,

so that the final weight contains the exact likelihood r, and the mean weight is an unbiased
estimate of p(y) for any twist. The chain p is that of the model, or a more accurate one (`chains`).
Latents u are part of a particle: they are drawn from their prior at the start (with `tempering` if
too few particles would remain effective) and updated by random-walk Metropolis steps that leave
psi_t(x_t, u) invariant.

Diffusion sites that depend on others run in later stages, each with its own chain: the final step
of a stage is weighted by the twist of the next stage at its x_T in place of psi_0.

References:
    Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion models".
    Sohl-Dickstein et al. 2015, section 2.5 (approximate kernels, for which the weights correct).
"""

from collections.abc import Callable
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks.arguments import as_float, check_callable, check_float, size_field
from ..samplers import AbstractSampler
from .chains import AbstractChain, CovarianceMatched, ModelChain, Particle
from .method import AbstractMethod, Draws, Exactness, draw_base
from .particles import MIN_LOG_TWIST, STATISTICS, Adapted, SMCState, resampled, weighted
from .program import Values
from .rejuvenation import can_update_latents
from .resampling import Resampling, systematic
from .target import Level, Target
from .tempering import num_keys, tempered, update_at_x_0, weight_and_update
from .twists import AbstractAdaptiveTwist, AbstractTwist, Twisted
from .twists.default import resolved_twist
from .weights import relative_variance

NUM_FINAL_MCMC_STEPS = 10
_PRIOR_DRAWS = 64  # for the scale of the Metropolis steps


def _check_resampling(value: object) -> Resampling:
    return check_callable("resampling", value, "(key, weights, num)")


@final
class TwistedSMC(AbstractMethod):
    """Twisted sequential Monte Carlo; also estimates log p(y) and its error. Consistent.

    Args:
        num_particles: number of particles; the error decreases with its square root.
        num_steps: number of steps to respace the chain to; None for all. The posterior is then
            that of the shorter chain (compare `elbo(key, respaced(model, num_steps), x)`).
        twist: if None, `MomentMatching()` for real data (`PooledMomentMatching()` for 33 to 1,024
            numbers and analytic denoisers), `ExpectedLikelihood()` for discrete data, or `Mixed()`.
        chain: the reverse chain whose posterior is targeted. If None, `CovarianceMatched()` for
            twists that compute the Jacobian of the denoiser (`MomentMatching(Tweedie())`,
            `PooledMomentMatching()`, `Quadrature()`), and `ModelChain()` otherwise.
        resampling: a function (key, weights, num) -> ancestors; see `diffppl.resampling`.
        ess_threshold: resample if the effective sample size falls below this fraction of
            `num_particles`.
        num_mcmc_steps: number of Metropolis steps on the latents at each step of the chain.

    Example:
        >>> posterior = dp.Posterior(program, dp.TwistedSMC(num_particles=1_000))
        >>> posterior.run(jax.random.key(0), y=0.3)
    """

    exactness: ClassVar[Exactness] = Exactness.CONSISTENT
    num_particles: int = eqx.field(
        static=True, default=1_000, converter=size_field("num_particles", 2)
    )
    num_steps: int | None = eqx.field(
        static=True, default=None, converter=size_field("num_steps", optional=True)
    )
    twist: AbstractTwist | None = None
    chain: AbstractChain | None = None
    resampling: Resampling = eqx.field(static=True, default=systematic, converter=_check_resampling)
    ess_threshold: Float[Array, ""] = eqx.field(converter=as_float, default=0.5)
    num_mcmc_steps: int = eqx.field(static=True, default=1, converter=size_field("num_mcmc_steps"))

    def __check_init__(self) -> None:
        check_float("ess_threshold", self.ess_threshold, 0.0, 1.0, closed=True)

    def resolve(self, target: Target, num_samples: int) -> "TwistedSMC":
        if num_samples > self.num_particles:
            raise ValueError(
                f"num_samples={num_samples} is more than num_particles={self.num_particles}: draws "
                "are selected from the particles. Decrease num_samples or increase num_particles."
            )
        twist = resolved_twist(self.twist, target, adaptive=True)
        chain = self.chain
        if chain is None:
            # If the twist computes the Jacobian anyway, the second-order chain costs little more.
            chain = CovarianceMatched() if twist.has_jacobian(target) else ModelChain()
        chain.check(target, twist)
        return eqx.tree_at(
            lambda m: (m.twist, m.chain), self, (twist, chain), is_leaf=lambda x: x is None
        )

    def prior_sampler(self) -> AbstractSampler:
        return self._resolved()[1].sampler()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> int:
        del num_samples
        twist, chain = self._resolved()
        each = 1 + (self.num_mcmc_steps if can_update_latents(target) else 0)
        shared = twist.num_references if isinstance(twist, AbstractAdaptiveTwist) else 0
        step = self.num_particles * (each + chain.num_denoiser_calls()) + shared
        return step * target.num_steps * target.structure.num_stages

    def phases(self, target: Target) -> tuple[int, ...]:
        """Return the number of levels t = T..1, for each stage."""
        return (target.num_steps,) * target.structure.num_stages

    def init(self, key: Array, target: Target, num_samples: int) -> SMCState:
        """Draw particles at time T from the base and the prior; the first step weights them."""
        del num_samples
        n, num_entries = self.num_particles, 1 + target.num_steps * target.structure.num_stages
        keys = jax.random.split(key, 1 + n + _PRIOR_DRAWS)
        x = draw_base(keys[0], target, n)
        drawn, log_prior = jax.vmap(target.draw_latents)(keys[1:])
        latents, log_prior = drawn[:n], log_prior[:n]
        return SMCState(
            x,
            latents,
            # log q(u) is the denominator of w_T.
            *self._placeholder(target, x, latents, 0, log_prior),
            log_prior,
            temperature=jnp.asarray(0.0 if can_update_latents(target) else 1.0),
            log_weights=jnp.full(n, -jnp.log(n)),
            eves=jnp.arange(n),
            num_resampled=jnp.asarray(0),
            log_evidence=jnp.zeros(()),
            variance=jnp.zeros(()),
            prior_scale=jnp.std(drawn[n:], axis=0),
            acceptance=jnp.full((), jnp.nan),
            stats=jnp.full((num_entries, len(STATISTICS)), jnp.nan),
        )

    def step(
        self, key: Array, target: Target, state: SMCState, phase: int, i: Int[Array, ""]
    ) -> SMCState:
        """Sample the running sites at t = T - i, reweight, resample, and update the latents.

        At i = 0 the particles are at t = T already; the other operations are repeated until the
        temperature is 1.
        """
        level, entry = Level(phase, target.num_steps - i), phase * target.num_steps + i
        # Each call of `split` compiles a loop, so all keys of the step are from one.
        keys_x, keys_rest = jnp.split(
            jax.random.split(key, self.num_particles + num_keys(self.num_mcmc_steps)),
            [self.num_particles],
        )
        chain, names = self._current(state)[1], target.sites(phase)

        def advance(state: SMCState) -> tuple[Values, Array]:
            def step(key: Array, particle: Particle) -> tuple[Values, Array]:
                return chain.step(key, target, particle, Level(phase, level.t + 1))

            return self._each(keys_x, state, step)

        def stay(state: SMCState) -> tuple[Values, Array]:
            return {name: state.x[name] for name in names}, jnp.zeros(self.num_particles)

        moved, log_ratio = jax.lax.cond(i > 0, advance, stay, state)
        # The incremental weight is psi_{t-1} / (psi_t q / p).
        log_denominator = state.twisted.log_value - log_ratio
        state = state._replace(x=state.x | moved)
        cloud = state.x, level, state.latents, state.log_weights
        state = state._replace(adapted=self._adapted(target, *cloud))
        twist = self._current(state)[0]
        if not can_update_latents(target):
            twisted = self._evaluate(twist, target, state.x, state.latents, level)
            state = state._replace(twisted=twisted)
            state = weighted(state, state.twisted.log_value - log_denominator, entry)
            return resampled(keys_rest[0], state, self.resampling, self.ess_threshold)

        def weigh(key: Array, state: SMCState, num_done: Array) -> SMCState:
            log_value, log_prior = state.twisted.log_value, state.log_prior
            temperature, increments = jax.lax.cond(
                state.temperature < 1,
                lambda: tempered(state.temperature, log_value - log_prior, num_done),
                lambda: (state.temperature, log_value - log_denominator),
            )
            state = weighted(state._replace(temperature=temperature), increments, entry)
            # The next temperature is chosen for equally weighted particles.
            threshold = jnp.where(state.temperature < 1, 1.0, self.ess_threshold)
            return resampled(key, state, self.resampling, threshold)

        def evaluate(x: Values, latents: Array) -> tuple[Array, Twisted]:
            twisted = self._evaluate(twist, target, x, latents, level)
            return jax.vmap(target.log_prior)(latents), twisted

        return weight_and_update(keys_rest, state, evaluate, weigh, self.num_mcmc_steps)

    def end(
        self, key: Array, target: Target, state: SMCState, phase: int, num_samples: int
    ) -> SMCState | Draws:
        """Perform the final step of a stage; after the last stage, weight by the likelihood."""
        chain, num_stages = self._resolved()[1], target.structure.num_stages
        n = self.num_particles
        keys = jax.random.split(key, n + 2 + 2 * NUM_FINAL_MCMC_STEPS)

        chain = chain.prepared(target, self._current(state)[0], Level(phase, 1))

        def final_step(key: Array, particle: Particle) -> tuple[Values, Array]:
            return chain.final_step(key, target, particle, phase)

        moved, log_ratio = self._each(keys[:n], state, final_step)
        log_denominator = state.twisted.log_value - log_ratio
        state = state._replace(x=state.x | moved)
        if phase < num_stages - 1:
            x, latents = state.x, state.latents
            twisted, adapted = self._placeholder(target, x, latents, phase + 1, log_denominator)
            return state._replace(twisted=twisted, adapted=adapted)
        log_likelihood = jax.vmap(target.log_likelihood)(state.x, state.latents)
        twisted = jax.vmap(lambda r: Twisted(r - target.log_noiseless_units(), {}, {}, {}, None))
        state = state._replace(twisted=twisted(log_likelihood))
        increments = state.twisted.log_value - log_denominator
        state = weighted(state, increments, num_stages * target.num_steps)
        latents = state.latents
        if can_update_latents(target):
            latents = update_at_x_0(keys[n + 2 :], target, state, log_likelihood)
        ancestry = state.eves, state.num_resampled, state.variance
        variance = relative_variance(state.log_weights, *ancestry)
        ancestors = self.resampling(keys[n], jnp.exp(state.log_weights), num_samples)
        # Systematic and stratified schemes return sorted indices, which are put in random order.
        ancestors = ancestors[jnp.argsort(jax.random.bits(keys[n + 1], (num_samples,)))]
        return Draws(
            x_0=jax.tree.map(lambda x: x[ancestors], state.x),
            latents=latents[ancestors],
            log_evidence=state.log_evidence,
            evidence_variance=variance,
            log_weights=state.log_weights,
            sample_stats={"log_weight": state.log_weights[ancestors], "particle": ancestors},
            step_stats=dict(zip(STATISTICS, state.stats.T, strict=True)),
        )

    def _resolved(self) -> tuple[AbstractTwist, AbstractChain]:
        assert self.twist is not None, "resolve the method first"
        assert self.chain is not None, "resolve the method first"
        return self.twist, self.chain

    def _current(self, state: SMCState) -> tuple[AbstractTwist, AbstractChain]:
        return self._resolved() if state.adapted is None else state.adapted

    def _adapted(
        self, target: Target, x: Values, level: Level, latents: Array, log_weights: Array
    ) -> Adapted | None:
        twist, chain = self._resolved()
        if not isinstance(twist, AbstractAdaptiveTwist):
            return None
        twist = twist.adapted(target, x, level, latents, log_weights)
        return twist, chain.prepared(target, twist, level)

    def _evaluate(
        self, twist: AbstractTwist, target: Target, x: Values, latents: Array, level: Level
    ) -> Twisted:
        def evaluate(x: Values, latents: Array) -> Twisted:
            return self._resolved()[1].select(twist.evaluate(target, x, level, latents))

        twisted = jax.vmap(evaluate)(x, latents)
        # The weights are consistent only for positive twists.
        value = jnp.where(jnp.isneginf(twisted.log_value), MIN_LOG_TWIST, twisted.log_value)
        return eqx.tree_at(lambda twisted: twisted.log_value, twisted, value)

    def _placeholder(
        self, target: Target, x: Values, latents: Array, stage: int, log_value: Array
    ) -> tuple[Twisted, Adapted | None]:
        """Return placeholders for the twist at x_T of a stage; only its log-value is used."""
        level, weights = Level(stage, jnp.asarray(target.num_steps)), jnp.zeros(self.num_particles)

        def evaluate(x: Values, latents: Array) -> tuple[Twisted, Adapted | None]:
            adapted = self._adapted(target, x, level, latents, weights)
            twist, _ = adapted or self._resolved()
            return self._evaluate(twist, target, x, latents, level), adapted

        shapes = eqx.filter_eval_shape(evaluate, x, latents)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return eqx.tree_at(lambda zeros: zeros[0].log_value, zeros, log_value)

    def _each(
        self,
        keys: Array,
        state: SMCState,
        step: Callable[[Array, Particle], tuple[Values, Float[Array, ""]]],
    ) -> tuple[Values, Float[Array, " n"]]:
        """Apply a step of the chain to each particle."""
        particles = Particle(state.x, state.twisted, state.latents)
        return jax.vmap(step)(keys, particles)
