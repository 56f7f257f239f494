"""Twisted sequential Monte Carlo.

Particles run down the reverse chain, each step guided by a twist psi_t towards the observations,
and weighted for the difference between the guided kernel q and the model's own p:

    w_T     = psi_T(x_T, u) / q(u)
    w_{t-1} = w_t  p(x_{t-1} | x_t) psi_{t-1}(x_{t-1}, u) / ( q(x_{t-1} | x_t) psi_t(x_t, u) ),
    psi_0   = r,

so that the last weight is the program's own likelihood r and the mean weight estimates p(y) without
bias, whatever the twist. The chain p is the model's own or a better one (`chains`). Latents u
are part of a particle: drawn from their prior at the start (by way of `tempering`, where that
leaves few of them alive) and moved by random-walk Metropolis
steps that leave psi_t(x_t, u) invariant.

Diffusion sites that depend on others run in later stages, each with a chain of its own: the last
step of a stage is weighted by the twist of the next one at its x_T, in place of psi_0.

References:
    Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion models".
    Sohl-Dickstein et al. 2015, section 2.5: the products that this makes exact.
"""

from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import as_float, check_fields, check_float, size_field
from ..samplers import AbstractSampler
from .chains import AbstractChain, CovarianceMatched, ModelChain, Particle
from .method import AbstractMethod, Draws, Exactness, draw_base
from .particles import LEAST_LOG_TWIST, STATISTICS, SMCState, resampled, rows, weighted
from .program import Values
from .rejuvenation import can_move, metropolis
from .resampling import AbstractResampling, Systematic
from .target import Level, Target
from .tempering import MAX_STEPS, tempered, tempered_density, untempered
from .twists import AbstractTwist, Twisted
from .twists.default import resolved_twist
from .weights import relative_variance

LAST_MOVES = 10
TEMPER_MOVES = 3
_PRIOR_DRAWS = 64  # for the scale of the moves


@final
class TwistedSMC(AbstractMethod):
    """Twisted sequential Monte Carlo: samples, and log p(y) with its error. Consistent.

    Args:
        num_particles: more is better; the error falls with its square root.
        num_steps: read the chain at fewer steps; None keeps them all. The posterior is then
            that of the shorter chain (compare `elbo(key, model.respace(num_steps), x)`).
        twist: `MomentMatching()` for real data, `ExpectedLikelihood()` for discrete data and
            `Mixed()` for programs with both if it is None.
        chain: the reverse chain whose posterior is drawn. `CovarianceMatched()` if it is None
            and the twist takes the denoiser's Jacobian anyway (`MomentMatching(Tweedie())`,
            `Quadrature()`), `ModelChain()` otherwise, as for more than 32 observed numbers.
        resampling: a scheme.
        ess_threshold: resample when the effective sample size falls below this share.
        num_moves: Metropolis steps on the latents at each step of the chain.

    Example:
        >>> posterior = dp.Posterior(program, dp.TwistedSMC(num_particles=1_000))
        >>> posterior.run(jax.random.key(0), y=0.3)
        >>> posterior.log_evidence
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
    resampling: AbstractResampling = Systematic()
    ess_threshold: Float[Array, ""] = eqx.field(converter=as_float, default=0.5)
    num_moves: int = eqx.field(static=True, default=1, converter=size_field("num_moves"))

    def __check_init__(self) -> None:
        check_float("ess_threshold", self.ess_threshold, 0.0, 1.0, closed=True)
        check_fields(self)

    def resolve(self, target: Target, num_samples: int) -> "TwistedSMC":
        """See `AbstractMethod.resolve`."""
        if num_samples > self.num_particles:
            raise ValueError(
                f"num_samples={num_samples} is more than num_particles={self.num_particles}: the "
                "draws are chosen among the particles. Ask for fewer samples or more particles."
            )
        twist = resolved_twist(self.twist, target)
        chain = self.chain
        if chain is None:
            # Where the twist takes the denoiser's Jacobian anyway, the better chain costs little.
            chain = CovarianceMatched() if twist.has_jacobian(target) else ModelChain()
        chain.check(target, twist)
        return eqx.tree_at(
            lambda m: (m.twist, m.chain), self, (twist, chain), is_leaf=lambda x: x is None
        )

    def prior_sampler(self) -> AbstractSampler:
        """See `AbstractMethod.prior_sampler`."""
        return self._resolved()[1].sampler()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> int:
        """See `AbstractMethod.num_denoiser_calls`."""
        del num_samples
        evaluations = 1 + (self.num_moves if can_move(target) else 0)
        steps = target.num_steps * target.structure.num_stages
        return self.num_particles * steps * (evaluations + self._resolved()[1].num_denoiser_calls())

    def phases(self, target: Target) -> tuple[int, ...]:
        """The steps t = T..2 of each stage, and the moves at t = 1."""
        return (target.num_steps,) * target.structure.num_stages

    def init(self, key: Array, target: Target, num_samples: int) -> SMCState:
        """Particles at time T, weighted by the first twist, or by as much of it as they bear."""
        del num_samples
        n, num_entries = self.num_particles, 1 + target.num_steps * target.structure.num_stages
        key_x, key_latents = jax.random.split(key)
        x = draw_base(key_x, target, n)
        keys = jax.random.split(key_latents, n + _PRIOR_DRAWS)
        drawn, log_prior = jax.vmap(target.draw_latents)(keys)
        latents = drawn[:n]
        state = SMCState(
            x,
            latents,
            self._evaluate(target, x, latents, Level(0, target.num_steps)),
            log_prior[:n],
            temperature=jnp.zeros(()),
            log_weights=jnp.full(n, -jnp.log(n)),
            eves=jnp.arange(n),
            num_resampled=jnp.asarray(0),
            log_evidence=jnp.zeros(()),
            prior_scale=jnp.std(drawn[n:], axis=0),
            acceptance=jnp.full((), jnp.nan),
            stats=jnp.full((num_entries, len(STATISTICS)), jnp.nan),
        )
        return weighted(*(tempered(state) if can_move(target) else untempered(state)), 0)

    def step(
        self, key: Array, target: Target, state: SMCState, phase: int, i: Int[Array, ""]
    ) -> SMCState:
        """Resample if need be, move the latents, and take the running sites from t to t - 1.

        At t = T the first two are repeated until the temperature is 1; at t = 1 they are all.
        """
        level, entry = Level(phase, target.num_steps - i), _entry(target, phase, i)
        chain, can_temper = self._resolved()[1], phase == 0 and can_move(target)

        def advance(key: Array, state: SMCState) -> tuple[SMCState, Array]:
            return self._advance(
                key,
                state,
                lambda key, each: chain.step(key, target, each, level),
                lambda x, latents: self._evaluate(target, x, latents, Level(phase, level.t - 1)),
            )

        def leave(_: Array, state: SMCState) -> tuple[SMCState, Array]:
            return state, jnp.zeros(self.num_particles)

        def attempt(keys: Array, state: SMCState, num_done: Array) -> SMCState:
            key_resample, key_move, key_x = keys
            is_tempered = state.temperature < 1
            threshold = jnp.where(is_tempered, 1.0, self.ess_threshold)
            state = resampled(key_resample, state, self.resampling, threshold)
            state = self._move(key_move, target, state, level)
            branch = jnp.where(is_tempered, 2, jnp.where(level.t > 1, 1, 0))
            branches = [leave, advance]
            if can_temper:
                branches.append(lambda _, state: tempered(state, num_done))
            state, increments = jax.lax.switch(branch, branches, key_x, state)
            return weighted(state, increments, jnp.stack([len(state.stats), entry, 0])[branch])

        def again(carry: tuple[Array, SMCState, Array]) -> tuple[Array, SMCState, Array]:
            num_done, state, _ = carry
            is_last = state.temperature >= 1
            state = attempt(keys[num_done], state, num_done)
            return num_done + 1, state, is_last

        if not can_temper:
            return attempt(jax.random.split(key, 3), state, jnp.asarray(0))
        keys = jax.random.split(key, (MAX_STEPS + 2, 3))  # the tempered attempts, and the last
        start = (jnp.asarray(0), state, jnp.zeros((), bool))
        return jax.lax.while_loop(lambda carry: ~carry[2], again, start)[1]

    def end(
        self, key: Array, target: Target, state: SMCState, phase: int, num_samples: int
    ) -> SMCState | Draws:
        """The last step of a stage: to the next one, or to draws weighted by the likelihood."""
        chain, is_last = self._resolved()[1], phase == target.structure.num_stages - 1
        key_step, key_latents, key_choose = jax.random.split(key, 3)

        def last_step(key: Array, particle: Particle) -> tuple[Values, Array]:
            return chain.last_step(key, target, particle, phase)

        def evaluate(x: Values, latents: Array) -> Twisted:
            if not is_last:
                return self._evaluate(target, x, latents, Level(phase + 1, target.num_steps))
            units = target.log_known_units()
            return jax.vmap(
                lambda x, u: Twisted(target.log_likelihood(x, u) - units, {}, {}, {}, None)
            )(x, latents)

        entry = _entry(target, phase, target.num_steps - 1)
        state = weighted(*self._advance(key_step, state, last_step, evaluate), entry)
        if not is_last:
            return state
        latents = _move_last(key_latents, target, state)
        variance = relative_variance(state.log_weights, state.eves, state.num_resampled)
        key_parents, key_order = jax.random.split(key_choose)
        weights = jnp.exp(state.log_weights)
        parents = self.resampling.parents(key_parents, weights, num_samples)
        parents = jax.random.permutation(key_order, parents)
        return Draws(
            x_0=jax.tree.map(lambda x: x[parents], state.x),
            latents=latents[parents],
            log_evidence=state.log_evidence,
            evidence_variance=variance,
            log_weights=state.log_weights,
            sample_stats={"log_weight": state.log_weights[parents], "particle": parents},
            step_stats=dict(zip(STATISTICS, state.stats.T, strict=True)),
        )

    # The parts of a step --------------------------------------------------------------------------

    def _resolved(self) -> tuple[AbstractTwist, AbstractChain]:
        assert self.twist is not None, "resolve the method first"
        assert self.chain is not None, "resolve the method first"
        return self.twist, self.chain

    def _evaluate(self, target: Target, x: Values, latents: Array, level: Level) -> Twisted:
        twist = self._resolved()[0]
        twisted = jax.vmap(lambda x, u: twist.evaluate(target, x, level, u))(x, latents)
        value = jnp.where(jnp.isneginf(twisted.log_value), LEAST_LOG_TWIST, twisted.log_value)
        return eqx.tree_at(lambda twisted: twisted.log_value, twisted, value)

    def _advance(
        self, key: Array, state: SMCState, step: Any, evaluate: Any
    ) -> tuple[SMCState, Float[Array, " n"]]:
        """Step, and by what the weights change."""
        particles = Particle(state.x, state.twisted, state.latents)
        moved, log_ratio = jax.vmap(step)(jax.random.split(key, self.num_particles), particles)
        x = state.x | moved
        twisted = evaluate(x, state.latents)
        increments = twisted.log_value - state.twisted.log_value + log_ratio
        return state._replace(x=x, twisted=twisted), increments

    def _move(self, key: Array, target: Target, state: SMCState, level: Level) -> SMCState:
        """Metropolis moves of u at fixed x_t, which leave psi_t(x_t, u) invariant.

        While the temperature is below 1 they leave q(u)^{1 - temperature} psi_T^temperature so.
        """
        if not can_move(target):
            return state

        def log_density(latents: Array, first: Array) -> tuple[Array, tuple[Twisted, Array]]:
            x = rows(state.x, first, len(latents))
            twisted, prior = self._evaluate(target, x, latents, level), log_priors(latents)
            return tempered_density(state.temperature, prior, twisted), (twisted, prior)

        log_priors = jax.vmap(target.log_prior)
        value = tempered_density(state.temperature, state.log_prior, state.twisted)
        start = (state.latents, value, (state.twisted, state.log_prior))
        num_moves = jnp.where(state.temperature < 1, TEMPER_MOVES, 1) * self.num_moves
        latents, (twisted, prior), acceptance = metropolis(
            key, start, log_density, state.log_weights, state.prior_scale, num_moves
        )
        return state._replace(
            latents=latents, twisted=twisted, log_prior=prior, acceptance=acceptance
        )


def _entry(target: Target, phase: int, i: Int[Array, ""] | int) -> Int[Array, ""]:
    """Where the statistics of a step stand; those of x_T come first."""
    return jnp.asarray(1 + phase * target.num_steps + i)


def _move_last(key: Array, target: Target, state: SMCState) -> Float[Array, "n p"]:
    """A few more moves at fixed x_0, where only the program is evaluated."""
    if not can_move(target):
        return state.latents

    def log_density(latents: Array, first: Array) -> tuple[Array, None]:
        x = rows(state.x, first, len(latents))
        return jax.vmap(target.log_likelihood)(x, latents), None

    start = (state.latents, *log_density(state.latents, jnp.asarray(0)))
    return metropolis(key, start, log_density, state.log_weights, state.prior_scale, LAST_MOVES)[0]
