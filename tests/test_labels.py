"""Labels as whole numbers: from the data to guided draws and files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import diffppl as dp
from diffppl.fitting.fit import fit
from diffppl.networks.layers.embedding import LabelEmbedding

KEY = jax.random.key(0)
# Two classes far apart, of unlike size, and one number each.
CENTERS, SPREAD, SHARES = np.array([-1.0, 2.0]), 0.3, np.array([0.7, 0.3])
RNG = np.random.default_rng(0)
LABELS = RNG.choice(2, p=SHARES, size=2_000)
DATA = (CENTERS[LABELS] + SPREAD * RNG.normal(size=2_000))[:, None]


def make_model(network: Any, *, optional: bool) -> dp.DiffusionModel:
    if optional:
        network = dp.networks.OptionalContext(network, context_shape=())
    process = dp.GaussianDiffusion(dp.schedules.log_snr_linear(20, (0.02, 20.0)))
    return dp.DiffusionModel(process, network, (1,), context_shape=())


def mlp(**options: Any) -> dp.networks.MLP:
    return dp.networks.MLP((1,), width=32, depth=2, num_classes=2, key=KEY, **options)


@pytest.fixture(scope="module")
def fitted() -> dp.DiffusionModel:
    return fit(
        KEY,
        make_model(mlp(), optional=True),
        DATA,
        context=LABELS,
        loss=dp.losses.ContextDropout(dp.losses.SimpleLoss(), rate=0.3),
        optimizer=optax.adam(5e-3),
        num_iterations=1_500,
        batch_size=256,
        progress_bar=False,
    ).model


@pytest.mark.slow
def test_each_class_and_all_of_them_are_learned(fitted: dp.DiffusionModel):
    for label in (0, 1):
        draws = dp.sample(jax.random.key(label), fitted, (500,), context=label)
        assert draws.shape == (500, 1)
        assert abs(float(jnp.mean(draws)) - CENTERS[label]) < 0.15
        assert np.mean(np.abs(np.asarray(draws)[:, 0] - CENTERS[label]) < 1.5) > 0.97
    without = np.asarray(dp.sample(jax.random.key(2), fitted, (2_000,)))[:, 0]
    share = np.mean(without > 0.5)
    assert abs(share - SHARES[1]) < 0.06
    # -1 says nothing of the class, as no context does.
    none = dp.sample(jax.random.key(2), fitted, (2_000,), context=-1)
    np.testing.assert_allclose(np.asarray(none)[:, 0], without, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_guidance_leans_towards_the_label(fitted: dp.DiffusionModel):
    guided = dp.guided(fitted, 2.0)
    labels = np.array([1, 0])
    draws = np.asarray(dp.sample(KEY, guided, (400,), context=labels))[..., 0]
    assert draws.shape == (400, 2)
    plain = np.asarray(dp.sample(KEY, fitted, (400,), context=labels))[..., 0]
    # Away from the other class.
    assert draws[:, 0].mean() > plain[:, 0].mean()
    assert draws[:, 1].mean() < plain[:, 1].mean()
    assert np.all(draws[:, 0] > 0.5)
    assert np.all(draws[:, 1] < 0.5)


def test_a_file_brings_back_labels_and_guidance(fitted: dp.DiffusionModel, tmp_path: Any):
    guided = dp.guided(fitted, 1.0)
    dp.save(tmp_path / "guided.dppl", guided)
    loaded = dp.load(tmp_path / "guided.dppl")
    draws = [dp.sample(KEY, model, (50,), context=1) for model in (guided, loaded)]
    np.testing.assert_array_equal(*draws)
    assert loaded.num_labels == 2


@pytest.mark.slow
def test_labels_go_into_programs_and_likelihoods(fitted: dp.DiffusionModel):
    both = [dp.elbo(KEY, fitted, DATA[:400], context=x) for x in (LABELS[:400], 1 - LABELS[:400])]
    assert float(both[0].value) > float(both[1].value) + 5
    weighted = dp.importance_bound(
        KEY, fitted, DATA[:200], num_particles=10, context=LABELS[:200].astype(np.int8)
    )
    assert float(weighted.value) > float(both[0].value) - 0.5

    def program() -> None:
        numpyro.sample("x", fitted(np.array([0, 1, -1])))

    with numpyro.handlers.seed(rng_seed=KEY):
        trace = numpyro.handlers.trace(program).get_trace()
    assert trace["x"]["value"].shape == (3, 1)


def test_labels_from_a_source(fitted: dp.DiffusionModel):
    source = dp.data.InMemory(DATA, context=LABELS.astype(np.uint8))
    options = {"num_iterations": 20, "batch_size": 64, "progress_bar": False}
    from_source = fit(KEY, make_model(mlp(), optional=False), source, **options)
    from_array = fit(KEY, make_model(mlp(), optional=False), DATA, context=LABELS, **options)
    # Equal but for the centring of the array, which is in double precision.
    losses = [result.history.loss for result in (from_source, from_array)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_u_net_takes_labels_the_same_way():
    network = dp.networks.UNet((4, 4), (4, 8), num_heads=2, num_classes=3, key=KEY)
    network = dp.networks.OptionalContext(dp.networks.MixedPrecision(network), context_shape=())
    process = dp.GaussianDiffusion(dp.schedules.cosine(5))
    model = dp.DiffusionModel(process, network, (4, 4), context_shape=())
    assert model.num_labels == 3
    assert not model.needs_context
    images, labels = np.zeros((8, 4, 4)) + np.arange(8.0)[:, None, None], np.arange(8) % 3
    loss = dp.losses.ContextDropout(rate=0.5)
    result = fit(
        KEY,
        model,
        images,
        context=labels,
        loss=loss,
        num_iterations=3,
        progress_bar=False,
        batch_size=8,
    )
    assert np.all(np.isfinite(result.history.loss))
    x_t = jnp.ones((2, 4, 4))
    draws = dp.sample(KEY, dp.guided(result.model, 1.5), (2,), context=np.array([0, 2]))
    assert draws.shape == (2, 2, 4, 4)
    np.testing.assert_array_equal(
        result.model.denoise(x_t, 3, jnp.full(2, -1.0)), result.model.denoise(x_t, 3)
    )


def test_each_label_has_a_vector_and_the_others_are_nan():
    embedding = LabelEmbedding(3, 5, key=KEY)
    vectors = jax.vmap(embedding)(jnp.array([0.0, 2.0, -1.0]))
    np.testing.assert_array_equal(vectors[:2], embedding.table[jnp.array([0, 2])])
    np.testing.assert_array_equal(vectors[2], 0.0)
    bad = jax.jit(jax.vmap(embedding))(jnp.array([3.0, -2.0, 0.5, 1e9, jnp.nan]))
    assert np.all(np.isnan(bad))


BAD = {
    "too large": (
        2,
        r"context has 1 of 1 values \(2.*whole numbers from 0 to 1, or -1 for no class",
    ),
    "negative": (-2, "that are not labels"),
    "fraction": (0.5, "that are not labels"),
    "from one": (np.array([1, 2, 2, 1]), r"context has 2 of 4 values \(2 at \[1\], 2 at \[2\]\)"),
    "NaN": (np.nan, "context has NaN or infinite values"),
    "one-hot": (np.eye(2)[0] * 1.5, "1 of 2 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_label_is_refused(case: str):
    context, message = BAD[case]
    model = make_model(mlp(), optional=True)
    with pytest.raises(ValueError, match=message):
        dp.sample(KEY, model, (2,), context=context)
    with pytest.raises(ValueError, match=message):
        model(context)
    labels = np.broadcast_to(np.ravel(context)[-1], (5,)).copy()
    if case not in ("one-hot", "from one"):
        for data in (np.zeros((5, 1)), dp.data.InMemory(np.zeros((5, 1)), labels)):
            options = {} if isinstance(data, dp.data.InMemory) else {"context": labels}
            with pytest.raises(ValueError, match="context has"):
                fit(KEY, model, data, num_iterations=1, **options)


@pytest.mark.slow
def test_labels_of_any_source_are_looked_at():
    class Labelled(dp.data.AbstractSource):
        label: float

        @property
        def event_shape(self) -> tuple[int, ...]:
            return (1,)

        def batch(self, key: Any, size: int) -> Any:
            return jax.random.normal(key, (size, 1)), jnp.full(size, self.label)

    model = make_model(mlp(), optional=False)
    options = {"num_iterations": 2, "batch_size": 4, "progress_bar": False}
    assert fit(KEY, model, Labelled(1.0), **options).history.loss.size == 2
    with pytest.raises(ValueError, match="the context that data draws has .* that are not labels"):
        fit(KEY, model, Labelled(2.0), **options)


def test_a_label_needs_a_network_that_takes_one():
    numbers = dp.networks.MLP((1,), key=KEY, context_shape=(1,))
    with pytest.raises(ValueError, match=r"context_shape=\(\) is for labels.*num_classes"):
        dp.networks.OptionalContext(numbers, context_shape=())
    with pytest.raises(ValueError, match="num_classes=2 means that the context is a label"):
        dp.networks.MLP((1,), key=KEY, context_shape=(3,), num_classes=2)


@pytest.mark.slow
def test_a_label_in_a_trace_is_not_looked_at_but_right():
    model = make_model(mlp(), optional=True)
    labels = jnp.array([0, 1, -1])

    def bound(label: Any) -> Any:
        return dp.elbo(KEY, model, jnp.ones((4, 1)), context=jnp.full(4, label)).value

    traced = jax.jit(jax.vmap(bound))(labels)
    np.testing.assert_allclose(traced, [bound(int(label)) for label in labels], rtol=1e-5)
    assert np.isnan(jax.jit(bound)(7))
    draw = jax.jit(lambda c: dp.sample(KEY, model, (5,), context=c))
    np.testing.assert_allclose(draw(1), dp.sample(KEY, model, (5,), context=1), rtol=1e-4)
