"""Networks that can do without their context, and guidance by both answers."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.integrate
import scipy.special

import diffppl as dp
from diffppl.model.probability_flow import noise_to_data
from diffppl.samplers import ancestral

from .oracles import linear_gaussian_posterior
from .statistics import assert_mean, assert_moments, assert_within_standard_errors

SCHEDULE = dp.schedules.log_snr_linear(20, noise_to_signal=(0.05, 30.0))
WITHIN, MEAN, WHOLE = 0.4, -0.3, 1.1  # x_0 given c is N(c, WITHIN), x_0 is N(MEAN, WHOLE)
CONTEXT = jnp.array([0.9])
KEY = jax.random.key(0)


class Exact(eqx.Module):
    """The exact denoiser of x_0 given c, and of x_0, as data, noise or velocity."""

    schedule: dp.schedules.AbstractSchedule
    kind: str = eqx.field(static=True, default="Data")
    variances: tuple[float, ...] = eqx.field(static=True, default=())

    def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
        mean, variance = (MEAN, WHOLE) if context is None else (context, WITHIN)
        alpha_bar, noise = self.schedule.alpha_bar()[t], self.schedule.one_minus_alpha_bar()[t]
        a, s = jnp.sqrt(alpha_bar), jnp.sqrt(noise)
        x_0 = mean + a * variance / (alpha_bar * variance + noise) * (x_t - a * mean)
        eps = (x_t - a * x_0) / s
        raw = {"Data": x_0, "Noise": eps, "Velocity": a * eps - s * x_0}[self.kind]
        if self.variances:
            raw = jnp.stack([raw, jnp.full_like(raw, self.variances[context is None])])
        return raw


def exact_model(
    schedule: Any = SCHEDULE, kind: str = "Data", variances: tuple[float, ...] = ()
) -> dp.DiffusionModel:
    variance = (dp.predictions.LearnedVariance if variances else dp.predictions.LowerVariance)()
    return dp.DiffusionModel(
        dp.GaussianDiffusion(schedule),
        Exact(schedule, kind, variances),
        (1,),
        context_shape=(1,),
        prediction=getattr(dp.predictions, kind)(variance),
    )


MODEL = exact_model()


def optional_mlp(width: int = 8) -> dp.networks.OptionalContext:
    inner = dp.networks.MLP((1,), width=width, depth=1, context_shape=(3,), key=KEY)
    return dp.networks.OptionalContext(inner, (2,))


def mlp_model(network: Any, **kwargs: Any) -> dp.DiffusionModel:
    process = dp.GaussianDiffusion(SCHEDULE)
    return dp.DiffusionModel(process, network, (1,), context_shape=(2,), **kwargs)


# What the guided kernel is -----------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "variances"), [("Data", ()), ("Noise", ()), ("Velocity", (0.2, -0.7))]
)
def test_the_guided_mean_is_the_combination_whatever_the_output(
    kind: str, variances: tuple[float, ...]
):
    model = exact_model(kind=kind, variances=variances)
    x_t, t, w = jnp.array([[0.7], [-1.4]]), 7, 1.5
    given, without = model.denoise(x_t, t, CONTEXT), model.denoise(x_t, t)
    guided = dp.guided(model, w)
    np.testing.assert_allclose(
        guided.denoise(x_t, t, CONTEXT), (1 + w) * given - w * without, rtol=1e-12
    )
    kernel, conditional = (m.reverse_kernel(x_t, t, CONTEXT) for m in (guided, model))
    np.testing.assert_array_equal(kernel.variance, conditional.variance)


@pytest.mark.parametrize("shorter", [False, True])
def test_guidance_may_be_kept_to_an_interval_of_levels(shorter: bool):
    w, (low, high) = 1.5, (0.1, 2.0)
    models = [dp.guided(MODEL, w, noise_to_signal=(low, high)), dp.guided(MODEL, w), MODEL]
    if shorter:  # guidance knows levels, not steps
        models = [dp.respaced(m, 12) for m in models]
    x_t, ratio = jnp.array([0.7]), np.exp(-0.5 * models[0].process.schedule.log_snr())
    inside = (low <= ratio) & (ratio <= high)
    assert 2 < inside[1:].sum() < len(ratio) - 3
    for t in range(1, len(ratio)):
        partly, guided, plain = (m.denoise(x_t, t, CONTEXT) for m in models)
        np.testing.assert_array_equal(partly, guided if inside[t] else plain)


@pytest.mark.usefixtures("x64")
def test_weights_of_0_and_minus_1_are_the_conditional_and_the_unconditional():
    shape, key = (50,), jax.random.key(1)
    contexts = jnp.broadcast_to(CONTEXT, (*shape, 1))

    def draw(model: Any, contexts: Any) -> Any:
        return eqx.filter_jit(ancestral)(key, model, shape, contexts)

    conditional, unconditional = draw(MODEL, contexts), draw(MODEL, None)
    np.testing.assert_array_equal(draw(dp.guided(MODEL, 0.0), contexts), conditional)
    np.testing.assert_allclose(draw(dp.guided(MODEL, -1.0), contexts), unconditional, rtol=1e-9)
    np.testing.assert_array_equal(draw(dp.guided(MODEL, 2.0), None), unconditional)


def chain_moments(weight: float) -> tuple[float, float]:
    """Mean and variance of x_0 of the guided chain, step by step in double precision."""
    abar = np.asarray(SCHEDULE.alpha_bar(), np.float64)
    at, spread = 0.0, 1.0
    for t in range(len(abar) - 1, 0, -1):
        now, before = abar[t], abar[t - 1]
        beta = 1 - now / before
        slope, shift, added = np.sqrt(1 - beta), 0.0, beta
        if t > 1:
            slope, added = slope * (1 - before) / (1 - now), beta * (1 - before) / (1 - now)
            for mean, variance, share in ((0.9, WITHIN, 1 + weight), (MEAN, WHOLE, -weight)):
                gain = np.sqrt(now) * variance / (now * variance + 1 - now)
                b = share * np.sqrt(before) * beta / (1 - now)
                slope, shift = slope + b * gain, shift + b * (1 - np.sqrt(now) * gain) * mean
        at, spread = slope * at + shift, slope**2 * spread + added
    return at, spread


@pytest.mark.parametrize("weight", [0.0, 0.8, 3.0])
def test_the_guided_chain_has_the_moments_of_its_recursion(weight: float):
    draws = dp.sample(KEY, dp.guided(MODEL, weight), (20_000,), context=CONTEXT, batch_size=20_000)
    mean, variance = chain_moments(weight)
    assert_moments(draws, [mean], [[variance]])


@eqx.filter_jit
def flow(model: Any, x_T: Any, context: Any) -> Any:
    accurate = dp.Integrator(rtol=1e-9, atol=1e-9)
    return noise_to_data(model, x_T, context, integrator=accurate)


@pytest.mark.usefixtures("x64")
def test_the_guided_flow_in_closed_form():
    """dz/du = ((1 + w) (z - c) / (v + u) - w (z - m) / (V + u)) / 2, z = x / a, u = (s / a)^2."""
    schedule = dp.schedules.log_snr_linear(200, noise_to_signal=(1e-3, 1e3))
    model = exact_model(schedule)
    alpha_bar, noise = (
        np.asarray(x)[[1, -1]] for x in (schedule.alpha_bar(), schedule.one_minus_alpha_bar())
    )
    low, high = noise / alpha_bar
    for w in (0.0, 1.0, 3.0):

        def h(u: Any, w: float = w) -> Any:
            return (WITHIN + u) ** ((1 + w) / 2) * (WHOLE + u) ** (-w / 2)

        def pull(log_u: float, w: float = w) -> float:
            u = np.exp(log_u)
            return 0.5 * ((1 + w) * 0.9 / (WITHIN + u) - w * MEAN / (WHOLE + u)) / h(u, w) * u

        slope = h(low) / h(high) / np.sqrt(alpha_bar[1])
        middle = h(low) * scipy.integrate.quad(pull, np.log(low), np.log(high), epsabs=1e-12)[0]
        found = flow(dp.guided(model, w), jnp.array([[-1.0], [1.0]]), jnp.array([0.9]))
        np.testing.assert_allclose(found[:, 0], [middle - slope, middle + slope], rtol=1e-5)
        # As the module says: v (v / V)^w, and not the variance of the tilted distribution.
        np.testing.assert_allclose(slope**2, WITHIN * (WITHIN / WHOLE) ** w, rtol=1e-4)
        assert w == 0 or slope**2 < 0.8 * WITHIN / (1 + w * (1 - WITHIN / WHOLE))


PROBS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-0.5, 1.0]), np.array([0.1, 0.3])


def mixture_mean(probs: Any, x: Any, a: Any, noise: Any, xp: Any) -> Any:
    """E[x_0 given x] of classes with these probabilities, in NumPy or in JAX."""
    means, variances = (xp.asarray(values, x.dtype) for values in (MEANS, VARIANCES))
    total = a**2 * variances + noise
    density = probs * xp.exp(-((x - a * means) ** 2) / (2 * total)) / xp.sqrt(total)
    each = means + a * variances / total * (x - a * means)
    return xp.sum(density * each, axis=-1, keepdims=True) / xp.sum(density)


class TwoClasses(eqx.Module):
    """The exact answer for two classes; a context has their probabilities."""

    schedule: dp.schedules.AbstractSchedule

    def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
        probs = jnp.asarray(PROBS, x_t.dtype) if context is None else context
        a, noise = jnp.sqrt(self.schedule.alpha_bar()[t]), self.schedule.one_minus_alpha_bar()[t]
        return mixture_mean(probs, x_t, a, noise, jnp)


def two_classes(schedule: Any, *variance: Any) -> dp.DiffusionModel:
    process, data = dp.GaussianDiffusion(schedule), dp.predictions.Data(*variance)
    return dp.DiffusionModel(
        process, TwoClasses(schedule), (1,), context_shape=(2,), prediction=data
    )


@pytest.mark.usefixtures("x64")
def test_the_guided_flow_of_two_classes_is_its_differential_equation():
    schedule = dp.schedules.log_snr_linear(200, noise_to_signal=(0.03, 30.0))
    model, starts, w = two_classes(schedule), np.array([-1.5, -0.2, 0.4, 1.1]), 2.0
    x_T, first = jnp.asarray(starts)[:, None], np.array([1.0, 0.0])
    guided, plain = (flow(dp.guided(model, v), x_T, jnp.asarray(first))[:, 0] for v in (w, 0.0))

    def field(s: float, z: np.ndarray) -> np.ndarray:
        given, without = (
            np.array([mixture_mean(probs, x, 1.0, s**2, np)[0] for x in z])
            for probs in (first, PROBS)
        )
        return (z - given - w * (given - without)) / s

    alpha_bar, noise = (
        np.asarray(x)[[-1, 1]] for x in (schedule.alpha_bar(), schedule.one_minus_alpha_bar())
    )
    sigma, start = np.sqrt(noise / alpha_bar), starts / np.sqrt(alpha_bar[0])
    solved = scipy.integrate.solve_ivp(field, sigma, start, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(guided, solved.y[:, -1], rtol=1e-4, atol=1e-5)
    assert np.all(guided < plain)  # away from the other class, which lies above


@pytest.mark.usefixtures("x64")
def test_guided_bits_have_log_odds_that_are_combined():
    """Bit by bit P(x given c)^(1 + w) / P(x)^w, normalised; what is ruled out stays so."""

    class LogOdds(eqx.Module):
        def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
            return jnp.array([0.3, -0.4, 1.0]) if context is None else context

    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(5), rate=0.2)
    model = dp.DiffusionModel(process, LogOdds(), (3,), context_shape=(3,))
    log_odds, w = np.array([1.2, -0.1, -np.inf]), 1.5
    found = dp.guided(model, w).denoise(jnp.array([0, 1, 1]), 3, jnp.asarray(log_odds))
    p, q = scipy.special.expit(log_odds), scipy.special.expit([0.3, -0.4, 1.0])
    ones, zeros = p ** (1 + w) / q**w, (1 - p) ** (1 + w) / (1 - q) ** w
    np.testing.assert_allclose(found, ones / (ones + zeros), rtol=1e-9)


# In programs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_guided_model_is_a_prior_like_any_other():
    """The chain is linear, so its prior is normal, and the posterior conjugate."""
    mean, variance = chain_moments(0.8)
    guided = dp.guided(MODEL, 0.8)

    def program(y: Any = None) -> None:
        x = numpyro.sample("x", guided(CONTEXT))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    method = dp.TwistedSMC(num_particles=2_000, chain=dp.chains.ModelChain())
    posterior = dp.Posterior(program, method, num_chains=8, num_samples=500, progress_bar=False)
    y = 2.0
    posterior.run(KEY, y=jnp.array([y]))
    want = linear_gaussian_posterior([mean], [[variance]], [y], np.eye(1), [[0.25]])
    per_chain = posterior.get_samples(group_by_chain=True)["x"].mean(axis=(1, 2))
    assert_mean(per_chain, want[0][0], num=5.0)
    evidence = posterior.log_evidence
    assert_within_standard_errors(evidence.value, want[2], evidence.standard_error)


@pytest.mark.slow
def test_a_model_that_may_do_without_its_context_does():
    assert not MODEL.needs_context
    assert MODEL().batch_shape == ()
    assert MODEL(jnp.zeros((4, 1))).batch_shape == (4,)
    key, x = jax.random.key(2), jnp.array([0.4])
    whole = dist.Normal(MEAN, jnp.sqrt(WHOLE + 0.05**2))  # the flow keeps the first level's noise
    np.testing.assert_allclose(MODEL().log_prob(x), whole.log_prob(x)[0], atol=1e-2)
    bound = dp.elbo(key, MODEL, np.full((30, 1), 0.4))
    assert float(bound.value) < float(whole.log_prob(x)[0]) + 4 * float(bound.standard_error)

    def program(y: Any = None) -> None:
        x = numpyro.sample("x", MODEL())
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    draws = numpyro.infer.Predictive(program, num_samples=3)(key)
    assert draws["x"].shape == (3, 1)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(MODEL.reverse, key)).get_trace()
    assert trace["x_0"]["value"].shape == (1,)


def test_a_guided_model_is_saved_whole(tmp_path: Path):
    model = dp.guided(mlp_model(optional_mlp()), 1.5)
    dp.save(tmp_path / "guided.dppl", model)
    assert eqx.tree_equal(dp.load(tmp_path / "guided.dppl"), model)


def test_a_new_weight_compiles_nothing():
    traces = []

    @eqx.filter_jit
    def denoise(model: Any, x: Any) -> Any:
        traces.append(None)
        return model.denoise(x, 3, CONTEXT)

    values = [float(denoise(dp.guided(MODEL, w), jnp.ones(1))[0]) for w in (0.5, 1, 2.0)]
    assert len(traces) == 1
    assert len(set(values)) == 3


# Without a context -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (3, 4, 2)])
def test_no_context_is_told_from_every_context(shape: tuple[int, ...]):
    class Seen(eqx.Module):
        def __call__(self, x_t: Any, t: Any, context: Any) -> Any:
            return context

    network = dp.networks.OptionalContext(Seen(), shape)
    inside = (*shape[:-1], shape[-1] + 1)
    given = network(jnp.zeros(1), 1, jnp.full(shape, 0.5))
    assert given.shape == inside
    np.testing.assert_array_equal(given[..., :-1], 0.5)
    np.testing.assert_array_equal(given[..., -1], 0)
    without = np.concatenate([np.zeros(shape), np.ones((*shape[:-1], 1))], axis=-1)
    np.testing.assert_array_equal(network(jnp.zeros(1), 1, None), without)


def test_context_dropout_weighs_both_parts_exactly():
    """Its mean over the noise is that of the two losses, also where 0.2 of a batch is 0.4 data."""
    x_0 = jnp.array([[0.3], [1.2]])
    context = jnp.array([[0.9], [-0.5]])
    inner = dp.losses.SimpleLoss()
    dropout = dp.losses.ContextDropout(inner, rate=0.2)
    keys = jax.random.split(KEY, 3_000)

    @eqx.filter_jit
    def values(loss: Any, x_0: Any, context: Any) -> Any:
        return jax.vmap(lambda key: loss(key, MODEL, x_0, context))(keys)

    # The first of the batch goes without: the order of a minibatch is random.
    found = values(dropout, x_0, context)
    parts = 0.2 * values(inner, x_0[:1], None) + 0.8 * values(inner, x_0[1:], context[1:])
    spread = np.hypot(np.std(found), np.std(parts)) / np.sqrt(len(keys))
    assert_within_standard_errors(np.mean(found), np.mean(parts), spread)
    assert dropout.label == inner.label


@pytest.mark.slow
def test_what_is_fit_with_context_dropout_knows_both():
    rng = np.random.default_rng(0)
    labels = rng.choice(2, size=2_000, p=PROBS)
    data = (MEANS[labels] + np.sqrt(VARIANCES[labels]) * rng.normal(size=2_000))[:, None]
    start = mlp_model(optional_mlp(width=16), scaling=dp.Scaling())
    result = dp.fit(
        KEY,
        start,
        data,
        context=np.eye(2)[labels],
        loss=dp.losses.ContextDropout(rate=0.3),
        optimizer=optax.adam(1e-2),
        num_iterations=500,
        batch_size=128,
        progress_bar=False,
    )
    # With one variance for both, no mean has a larger bound than the exact one.
    exact = two_classes(SCHEDULE, result.model.prediction.variance)
    for context in (np.eye(2)[labels], None):
        best, reached, begun = (
            dp.elbo(jax.random.key(1), model, data, context=context).per_example
            for model in (exact, result.model, start)
        )
        gap = np.asarray(best - reached)
        assert gap.mean() > -4 * gap.std(ddof=1) / np.sqrt(gap.size)
        assert gap.mean() < 0.3 * float(jnp.mean(best - begun))


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_users_call_it")
def test_what_cannot_be_guided_is_refused():
    plain = dp.networks.MLP((1,), width=8, depth=1, context_shape=(2,), key=KEY)
    with pytest.raises(ValueError, match=r"an optional context.*networks.OptionalContext"):
        dp.guided(mlp_model(plain), 1.0)
    with pytest.raises(ValueError, match="guided requires a network with an optional context"):
        dp.guided(dp.DiffusionModel(dp.GaussianDiffusion(SCHEDULE), Exact(SCHEDULE), (1,)), 1.0)
    inner = dp.networks.MLP((1,), output_shape=(2, 1), context_shape=(3,), key=KEY)
    moments = dp.DiffusionModel(
        dp.GaussianDiffusion(SCHEDULE),
        dp.networks.OptionalContext(inner, (2,)),
        (1,),
        context_shape=(2,),
        prediction=dp.predictions.KernelMoments(),
    )
    with pytest.raises(ValueError, match="channels of KernelMoments"):
        dp.guided(moments, 1.0)
    for weight in (np.nan, np.inf, [1.0, 2.0]):
        with pytest.raises((TypeError, ValueError), match="weight=.* must be one (finite )?number"):
            dp.guided(MODEL, weight)


def test_a_context_that_is_needed_is_asked_for():
    plain = mlp_model(dp.networks.MLP((1,), width=8, depth=1, context_shape=(2,), key=KEY))
    assert plain.needs_context
    with pytest.raises(ValueError, match="context is missing"):
        plain()
    with pytest.raises(ValueError, match="context is missing"):
        dp.sample(KEY, plain, (2,))
    with pytest.raises(ValueError, match="context_shape=.* must be a tuple"):
        dp.networks.OptionalContext(plain.network, (0,))
    with pytest.raises(ValueError, match="context_shape=.. is for labels"):
        dp.networks.OptionalContext(plain.network, ())


def test_context_dropout_refuses_what_it_cannot_drop():
    dropout = dp.losses.ContextDropout
    data, contexts = np.array([[1.0], [-1.0]]), np.eye(2)
    plain = mlp_model(dp.networks.MLP((1,), width=8, depth=1, context_shape=(2,), key=KEY))
    options = {"num_iterations": 1, "progress_bar": False}
    with pytest.raises(ValueError, match=r"optional context.*networks.OptionalContext"):
        dp.fit(KEY, plain, data, context=contexts, loss=dropout(), **options)
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            dropout(rate=rate)
    model = mlp_model(optional_mlp())
    for bad in ({"batch_size": 1, "context": contexts}, {"batch_size": 2}):
        with pytest.raises(ValueError, match="needs contexts, and batch_size=2 or more"):
            dp.fit(KEY, model, data, loss=dropout(), **options, **bad)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (-1.0, 1.0), (0.5, float("nan"))])
def test_an_interval_of_levels_that_is_none_is_refused(interval: tuple[float, float]):
    with pytest.raises(ValueError, match="must be two numbers, 0 <= low < high"):
        dp.guided(MODEL, 1.0, noise_to_signal=interval)
