"""Wrappers around networks: the same answers and gradients, had in another way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp

from .marks import slow
from .registry import NETWORKS
from .test_networks import randomised

KEY = jax.random.key(0)
X = jnp.array([0.3, -1.2, 0.5])
MixedPrecision, Rematerialised = dp.networks.MixedPrecision, dp.networks.Rematerialised


def mlp(**options):
    return randomised(dp.networks.MLP((3,), width=8, depth=2, key=KEY, **options))


def value_and_gradient(network):
    def value(network):
        outputs = jax.vmap(lambda x, t: network(x, t, None))(jnp.stack([X, -X]), jnp.array([1, 5]))
        return jnp.sum(jnp.sin(outputs))

    return eqx.filter_jit(eqx.filter_value_and_grad(value))(network)


def weights(network):
    return jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))


def formats_of_products(network):
    text = str(jax.make_jaxpr(lambda x: network(x, 2, None))(X))
    products = [line for line in text.splitlines() if "dot_general[" in line]
    assert products
    return {line.split(":")[1].split("[")[0] for line in products}


# Short numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_short_numbers_are_near_the_long_ones(name):
    network = randomised(NETWORKS[name](KEY, (3,), (3,), 7))
    call = eqx.filter_jit(lambda network: network(X, 2, None))
    truth, short = call(network), call(MixedPrecision(network))
    assert short.dtype == truth.dtype == jnp.float32
    assert np.any(short != truth)
    np.testing.assert_allclose(short, truth, atol=0.03 * float(np.max(np.abs(truth))))


def test_products_are_short_and_weights_are_not():
    network = MixedPrecision(mlp())
    assert formats_of_products(network.network) == {"f32"}
    # The time enters once in single precision, and everything else is short.
    assert "bf16" in formats_of_products(network)
    _, gradient = value_and_gradient(network)
    _, truth = value_and_gradient(network.network)
    assert {leaf.dtype for leaf in weights(network) + weights(gradient)} == {np.dtype("float32")}
    # Eight bits round every product by up to 0.4 %; through the layers that is a few per cent.
    short, long = (np.concatenate([w.ravel() for w in weights(g)]) for g in (gradient, truth))
    assert np.linalg.norm(short - long) < 0.1 * np.linalg.norm(long)


def test_small_steps_of_an_optimizer_are_not_lost():
    network = MixedPrecision(mlp())
    moved = jax.tree.map(lambda w: w * (1 + 1e-5) if eqx.is_inexact_array(w) else w, network)
    assert all(np.any(a != b) for a, b in zip(weights(moved), weights(network), strict=True))


def test_bits_and_contexts_go_in():
    network = MixedPrecision(mlp(context_shape=(2,)))
    context = jnp.array([0.5, -1.0])
    short = network(jnp.array([1, 0, 0]), 2, context)
    truth = network.network(jnp.array([1, 0, 0]), 2, context)
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, truth, atol=0.03 * float(np.max(np.abs(truth))))


def test_a_label_is_not_rounded():
    unet = randomised(dp.networks.UNet((4,), (4,), num_heads=1, num_classes=300, key=KEY))
    network = eqx.filter_jit(MixedPrecision(unet))
    x = jnp.ones(4)
    # 257 is no bfloat16
    assert np.any(network(x, 1, jnp.asarray(257.0)) != network(x, 1, jnp.asarray(256.0)))


# Computed again ----------------------------------------------------------------------------------


def test_what_is_computed_again_is_the_same():
    network = mlp()
    again = Rematerialised(network)
    np.testing.assert_array_equal(again(X, 2, None), network(X, 2, None))
    value, gradient = value_and_gradient(network)
    value_again, gradient_again = value_and_gradient(again)
    np.testing.assert_allclose(value_again, value, rtol=1e-6)
    for one, other in zip(weights(gradient_again), weights(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_chain_keeps_states_alone():
    """What a gradient along ten steps keeps of each: x_t, and not the layers."""

    def kept(network):
        def chain(x):
            def step(x, t):
                return x + network(x, t, None), None

            return jnp.sum(jax.lax.scan(step, x, jnp.arange(1, 11))[0])

        residuals = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(chain, x)[1], X))
        return sum(leaf.size for leaf in residuals if leaf.shape[:1] == (10,))

    network = mlp()
    assert kept(Rematerialised(network)) <= 10 * (3 + 1)
    assert kept(network) > 2 * kept(Rematerialised(network))


@pytest.mark.slow
def test_blocks_of_a_unet_are_computed_again():
    sizes = {"num_heads": 1, "key": KEY}
    plain = randomised(dp.networks.UNet((4,), (4,), **sizes))
    again = randomised(dp.networks.UNet((4,), (4,), rematerialise=True, **sizes))
    assert all(isinstance(block, Rematerialised) for block in again.middle)
    for one, other in zip(weights(again), weights(plain), strict=True):
        np.testing.assert_array_equal(one, other)

    @eqx.filter_jit
    def gradient(network):
        return eqx.filter_grad(lambda n: jnp.sum(jnp.sin(n(jnp.arange(4.0), 2, None))))(network)

    for one, other in zip(weights(gradient(again)), weights(gradient(plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Any network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [Rematerialised, *slow(MixedPrecision)])
def test_a_wrapped_network_is_fit_saved_and_loaded(wrapper, tmp_path):
    network = wrapper(dp.networks.MLP((3,), width=8, depth=1, key=KEY))
    model = dp.DiffusionModel(dp.GaussianDiffusion(dp.schedules.cosine(5)), network, (3,))
    data = np.random.default_rng(0).standard_normal((50, 3))
    fitted = dp.fit(KEY, model, data, num_iterations=5, batch_size=8, progress_bar=False).last_model
    moved = zip(weights(fitted.network), weights(network), strict=True)
    assert all(np.any(a != b) for a, b in moved if a.ndim > 1 and np.any(b != 0))
    dp.save(tmp_path / "model.dppl", fitted)
    loaded = dp.load(tmp_path / "model.dppl")
    assert eqx.tree_equal(loaded, fitted)
    np.testing.assert_array_equal(dp.sample(KEY, loaded, (2,)), dp.sample(KEY, fitted, (2,)))


@pytest.mark.parametrize("wrapper", [MixedPrecision, Rematerialised])
def test_what_cannot_be_called_is_refused(wrapper):
    with pytest.raises(TypeError, match="network"):
        wrapper(3.0)
