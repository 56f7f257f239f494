"""Twisted sequential Monte Carlo.

Particles run down the reverse chain, each step guided by a twist psi_t towards the observations,
and weighted for the difference between the guided kernel q and the model's own p:

    w_T     = psi_T(x_T, u) p(u) / q(u)
    w_{t-1} = w_t  p(x_{t-1} given x_t) psi_{t-1}(x_{t-1}, u)
                   / ( q(x_{t-1} given x_t) psi_t(x_t, u) ),          psi_0 = r

so that the last weight is the program's own likelihood r and the mean weight estimates p(y) without
bias, whatever the twist. The chain p is the model's own or a better one (`chains`). Other latents u
are part of a particle: drawn from their prior at the start and moved by random-walk Metropolis
steps that leave psi_t(x_t, u) invariant.

References:
    Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion models".
    Sohl-Dickstein et al. 2015, section 2.5: the products that this makes exact.
"""

from typing import Any, ClassVar, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import as_float, check_float
from ..samplers import AbstractSampler
from .chains import AbstractChain, CovarianceMatched, ModelChain, Particle
from .method import AbstractMethod, Draws, Exactness, draw_base
from .moves import can_move, metropolis
from .program import Values
from .resampling import AbstractResampling, Systematic
from .target import Target
from .twists import AbstractTwist, Twisted, default_twist
from .twists.gaussian import AbstractGaussianTwist
from .weights import effective_sample_size, relative_variance, reweight

LAST_MOVES = 10


class SMCState(NamedTuple):
    """Particles at one time: the least that the next step needs."""

    x: Values
    latents: Float[Array, "n p"]
    twisted: Twisted
    log_weights: Float[Array, " n"]  # normalised: their exponentials sum to 1
    roots: Int[Array, " n"]  # each particle's ancestor at the start
    num_resampled: Int[Array, ""]

    def particles(self) -> Particle:
        """Every particle, with a leading axis."""
        return Particle(self.x, self.twisted, self.latents)


class SMCInfo(NamedTuple):
    """Diagnostics of one step."""

    log_increment: Float[Array, ""]  # log of the evidence gained
    ess: Float[Array, ""]  # effective sample size of the weights
    num_ancestors: Int[Array, ""]  # particles of the start that still have descendants
    acceptance: Float[Array, ""]  # of the moves of other latents; NaN without any


@final
class TwistedSMC(AbstractMethod):
    """Twisted sequential Monte Carlo: samples, and log p(y) with its error. Consistent.

    Args:
        num_particles: more is better; the error falls with its square root.
        num_steps: read the chain at fewer steps; None keeps them all. The posterior is then
            that of the shorter chain (compare `elbo(key, model.respace(num_steps), x)`).
        twist: `MomentMatching()` for real data and `ExpectedLikelihood()` for discrete data
            if it is None.
        chain: the reverse chain whose posterior is drawn. `CovarianceMatched()` if it is None
            and the twist takes the denoiser's Jacobian anyway (`MomentMatching(Tweedie())`,
            `Quadrature()`), `ModelChain()` otherwise, as for more than 8 observed numbers.
        resampling: a scheme.
        ess_threshold: resample when the effective sample size falls below this share.
        num_moves: Metropolis steps on the other latents at each step of the chain.

    Example:
        >>> posterior = dp.Posterior(program, dp.TwistedSMC(num_particles=1_000))
        >>> posterior.run(jax.random.key(0), y=0.3)
        >>> posterior.log_evidence
    """

    exactness: ClassVar[Exactness] = Exactness.CONSISTENT
    num_particles: int = eqx.field(static=True, default=1_000)
    num_steps: int | None = eqx.field(static=True, default=None)
    twist: AbstractTwist | None = None
    chain: AbstractChain | None = None
    resampling: AbstractResampling = Systematic()
    ess_threshold: Float[Array, ""] = eqx.field(converter=as_float, default=0.5)
    num_moves: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.num_particles < 2:
            raise ValueError(f"num_particles={self.num_particles} must be 2 or more.")
        check_float("ess_threshold", self.ess_threshold, 0.0, 1.0, closed=True)
        if self.num_moves < 1:
            raise ValueError(f"num_moves={self.num_moves} must be 1 or more.")

    def check(self, target: Target, num_samples: int) -> None:
        """See `AbstractMethod.check`."""
        if num_samples > self.num_particles:
            raise ValueError(
                f"num_samples={num_samples} is more than num_particles={self.num_particles}: the "
                "draws are chosen among the particles. Ask for fewer samples or more particles."
            )
        self._twist(target).check(target)
        self._chain(target).check(target, self._twist(target))

    def prior_sampler(self, target: Target) -> AbstractSampler:
        """See `AbstractMethod.prior_sampler`."""
        return self._chain(target).sampler()

    def num_denoiser_calls(self, target: Target, num_samples: int) -> int:
        """See `AbstractMethod.num_denoiser_calls`."""
        del num_samples
        looks = 1 + (self.num_moves if can_move(target) else 0)
        steps = isinstance(self._chain(target), CovarianceMatched)
        return self.num_particles * target.num_steps * (looks + steps)

    def _chain(self, target: Target) -> AbstractChain:
        if self.chain is not None:
            return self.chain
        twist = self._twist(target)
        # Where the twist takes the denoiser's Jacobian anyway, the better chain costs little more.
        taken = isinstance(twist, AbstractGaussianTwist) and twist.takes_jacobian(target)
        return CovarianceMatched() if taken else ModelChain()

    def _twist(self, target: Target) -> AbstractTwist:
        return default_twist(target) if self.twist is None else self.twist

    def num_ticks(self, target: Target) -> int:
        """See `AbstractMethod.num_ticks`."""
        return target.num_steps

    def draw(self, key: Array, target: Target, num_samples: int, tick: Any) -> Draws:
        """See `AbstractMethod.draw`."""
        key_init, key_steps, key_finish, key_choose = jax.random.split(key, 4)
        state, first = self.init(key_init, target)

        def step(state: SMCState, inputs: tuple[Array, Array]) -> tuple[SMCState, SMCInfo]:
            tick()
            return self.step(inputs[0], target, state, inputs[1])

        times = jnp.arange(target.num_steps, 1, -1)
        keys = jax.random.split(key_steps, len(times))
        state, infos = jax.lax.scan(step, state, (keys, times))
        x_0, latents, log_weights, last, variance = self.finish(key_finish, target, state)
        tick()

        infos = jax.tree.map(
            lambda a, b, c: jnp.concatenate([a[None], b, c[None]]), first, infos, last
        )
        key_parents, key_order = jax.random.split(key_choose)
        parents = self.resampling.parents(key_parents, jnp.exp(log_weights), num_samples)
        parents = jax.random.permutation(key_order, parents)
        return Draws(
            x_0=jax.tree.map(lambda x: x[parents], x_0),
            latents=latents[parents],
            log_evidence=jnp.sum(infos.log_increment),
            evidence_variance=variance,
            log_weights=log_weights,
            sample_stats={"log_weight": log_weights[parents], "particle": parents},
            step_stats={
                "ess": infos.ess,
                "num_ancestors": infos.num_ancestors,
                "acceptance": infos.acceptance,
            },
        )

    # The three parts of a run ----------------------------------------------------------------

    def init(self, key: Array, target: Target) -> tuple[SMCState, SMCInfo]:
        """Particles at time T, weighted by the first twist."""
        n = self.num_particles
        key_x, key_latents = jax.random.split(key)
        x = draw_base(key_x, target, n)
        latents, log_prior = jax.vmap(target.prior_latents)(jax.random.split(key_latents, n))
        twisted = self._look(target, x, jnp.asarray(target.num_steps), latents)
        log_weights, log_increment = reweight(
            jnp.full(n, -jnp.log(n)), twisted.log_value - log_prior
        )
        state = SMCState(x, latents, twisted, log_weights, jnp.arange(n), jnp.asarray(0))
        return state, _info(state, log_increment, jnp.asarray(jnp.nan))

    def step(
        self, key: Array, target: Target, state: SMCState, t: Int[Array, ""]
    ) -> tuple[SMCState, SMCInfo]:
        """Resample if need be, move the other latents, and take the particles from t to t - 1."""
        key_resample, key_move, key_x = jax.random.split(key, 3)
        state = self._resample(key_resample, state)
        state, acceptance = self._move(key_move, target, state, t)
        chain, twist = self._chain(target), self._twist(target)
        x, log_ratio = jax.vmap(lambda key, each: chain.propose(key, target, twist, each, t))(
            jax.random.split(key_x, self.num_particles), state.particles()
        )
        twisted = self._look(target, x, t - 1, state.latents)
        gain = twisted.log_value - state.twisted.log_value + log_ratio
        log_weights, log_increment = reweight(state.log_weights, gain)
        state = state._replace(x=x, twisted=twisted, log_weights=log_weights)
        return state, _info(state, log_increment, acceptance)

    def finish(
        self, key: Array, target: Target, state: SMCState
    ) -> tuple[Values, Array, Array, SMCInfo, Array]:
        """The edge step, and the weights by the program's own likelihood."""
        key_resample, key_move, key_x, key_last = jax.random.split(key, 4)
        state = self._resample(key_resample, state)
        state, acceptance = self._move(key_move, target, state, jnp.asarray(1))
        chain, twist = self._chain(target), self._twist(target)
        x_0, log_ratio = jax.vmap(lambda key, each: chain.finish(key, target, twist, each))(
            jax.random.split(key_x, self.num_particles), state.particles()
        )
        log_likelihood = jax.vmap(target.log_likelihood)(x_0, state.latents)
        gain = log_likelihood + log_ratio - state.twisted.log_value - target.log_exact_units()
        log_weights, log_increment = reweight(state.log_weights, gain)
        state = state._replace(log_weights=log_weights)
        info = _info(state, log_increment, acceptance)
        latents = _move_last(key_last, target, x_0, state)
        variance = relative_variance(log_weights, state.roots, state.num_resampled)
        return x_0, latents, log_weights, info, variance

    def _look(self, target: Target, x: Values, t: Array, latents: Array) -> Twisted:
        twist = self._twist(target)
        return jax.vmap(lambda x, u: twist.look(target, x, t, u))(x, latents)

    def _move(
        self, key: Array, target: Target, state: SMCState, t: Array
    ) -> tuple[SMCState, Array]:
        """Metropolis moves of u at fixed x_t, which leave psi_t(x_t, u) invariant."""
        if not can_move(target):
            return state, jnp.asarray(jnp.nan)

        def log_density(latents: Array) -> tuple[Array, Twisted]:
            twisted = self._look(target, state.x, t, latents)
            return twisted.log_value + jax.vmap(target.log_jacobian)(latents), twisted

        value = state.twisted.log_value + jax.vmap(target.log_jacobian)(state.latents)
        start = (state.latents, value, state.twisted)
        latents, twisted, acceptance = metropolis(
            key, start, log_density, state.log_weights, self.num_moves
        )
        return state._replace(latents=latents, twisted=twisted), acceptance

    def _resample(self, key: Array, state: SMCState) -> SMCState:
        """Resample where the effective sample size has fallen below the threshold."""
        n = self.num_particles
        needed = effective_sample_size(state.log_weights) < self.ess_threshold * n

        def resample(state: SMCState) -> SMCState:
            parents = self.resampling.parents(key, jnp.exp(state.log_weights), n)
            x, latents, twisted, roots = jax.tree.map(
                lambda leaf: leaf[parents], (state.x, state.latents, state.twisted, state.roots)
            )
            uniform = jnp.full(n, -jnp.log(n), state.log_weights.dtype)
            return SMCState(x, latents, twisted, uniform, roots, state.num_resampled + 1)

        return jax.lax.cond(needed, resample, lambda state: state, state)


def _move_last(key: Array, target: Target, x_0: Values, state: SMCState) -> Float[Array, "n p"]:
    """A few more moves at fixed x_0, where only the program is evaluated."""
    if not can_move(target):
        return state.latents

    def log_density(latents: Array) -> tuple[Array, None]:
        densities = jax.vmap(target.log_likelihood)(x_0, latents)
        return densities + jax.vmap(target.log_jacobian)(latents), None

    start = (state.latents, *log_density(state.latents))
    return metropolis(key, start, log_density, state.log_weights, LAST_MOVES)[0]


def _info(state: SMCState, log_increment: Array, acceptance: Array) -> SMCInfo:
    present = jnp.zeros_like(state.roots).at[state.roots].set(1)
    return SMCInfo(
        log_increment, effective_sample_size(state.log_weights), jnp.sum(present), acceptance
    )
