"""Networks: shapes, gradients, what is shared over time and what is not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import diffppl as dp
from diffppl.networks.layers.embedding import sinusoidal

from .registry import NETWORKS

T = 7
KEY = jax.random.key(0)
KINDS = {
    "real": jnp.array([0.3, -1.2, 0.5]),
    "bits": jnp.array([1, 0, 0]),
}


def randomised(network, key=KEY):
    """The network with other weights than it starts with, none of them zero."""
    # NumPy's numbers: JAX compiles a program for each shape.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def noisy(leaf):
        changed = np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape)
        return jax.device_put(changed.astype(leaf.dtype))

    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(noisy, arrays), static)


@pytest.fixture(params=NETWORKS)
def make(request):
    return NETWORKS[request.param]


# Every network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output_shape", [(3,), (2, 3)], ids=str)
def test_outputs_have_their_shape_and_start_at_zero(make, kind, output_shape):
    network = make(KEY, (3,), output_shape, T)
    for t in (1, T):
        output = network(KINDS[kind], t, None)
        assert output.shape == output_shape
        assert output.dtype == jnp.float32
        np.testing.assert_array_equal(output, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight(make, kind):
    network = randomised(make(KEY, (3,), (3,), T))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(network):
        # several events and every step: each weight matters to one of them
        x = jnp.stack([KINDS[kind], KINDS[kind][::-1]])
        outputs = jax.vmap(
            jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)), in_axes=(None, 0)
        )(x, jnp.arange(1, T + 1))
        return jnp.sum(jnp.sin(outputs))

    for leaf in jax.tree.leaves(gradient(network)):
        assert np.all(np.isfinite(leaf))
        assert np.all(np.any(leaf != 0, axis=-1))


def test_a_batch_is_its_events(make):
    network = randomised(make(KEY, (2, 2), (2, 2), T))
    x = jax.random.normal(KEY, (4, 2, 2))
    batch = jax.jit(jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)))(x, jnp.int32(3))
    single = jnp.stack([network(event, 3, None) for event in x])
    np.testing.assert_allclose(batch, single, rtol=1e-5, atol=1e-6)
    assert np.all(np.std(batch, axis=0) > 0)


def test_time_matters(make):
    network = randomised(make(KEY, (3,), (3,), T))
    outputs = np.array([network(KINDS["real"], t, None) for t in range(1, T + 1)])
    assert np.min(np.abs(np.diff(outputs, axis=0))) > 1e-5


@pytest.mark.parametrize(
    "prediction",
    [
        dp.predictions.Velocity(dp.predictions.UpperVariance()),
        dp.predictions.Velocity(dp.predictions.LearnedVariance()),
        dp.predictions.KernelMoments(),
    ],
    ids=["velocity-upper", "velocity-learned", "kernel-moments"],
)
def test_an_untrained_reverse_chain_is_the_forward_one(make, prediction):
    process = dp.GaussianDiffusion(dp.schedules.cosine(T))
    shape = prediction.output_shape(process, (2,))
    model = dp.DiffusionModel(process, make(KEY, (2,), shape, T), (2,), prediction=prediction)
    x = jnp.array([[0.4, -2.0], [1.5, 0.1]])
    for t in (1, 2, T):
        reverse = model.reverse_kernel(x, t).base_dist
        forward = process.transition(x, t)
        np.testing.assert_allclose(reverse.loc, forward.loc, rtol=1e-4, atol=1e-6)
        scale = np.broadcast_to(reverse.scale, (2, 2))
        np.testing.assert_allclose(scale, np.broadcast_to(forward.scale, (2, 2)), rtol=1e-4)


def test_a_wrong_output_shape_is_named_beside_the_right_one(make):
    process = dp.GaussianDiffusion(dp.schedules.cosine(T))
    with pytest.raises(ValueError, match=r"returns shape \(5,\).*needs shape \(2, 3\)"):
        dp.DiffusionModel(
            process,
            make(KEY, (3,), (5,), T),
            (3,),
            prediction=dp.predictions.Velocity(dp.predictions.LearnedVariance()),
        )


def test_a_wrong_event_shape_is_named(make):
    process = dp.GaussianDiffusion(dp.schedules.cosine(T))
    with pytest.raises(ValueError, match=r"network could not be called.*shape \(4,\)"):
        dp.DiffusionModel(process, make(KEY, (3,), (4,), T), (4,))


# Time features -----------------------------------------------------------------------------------


def test_sinusoidal_features_have_frequencies_in_equal_ratios():
    features = np.asarray(sinusoidal(2, 8, max_period=1000.0))
    frequencies = np.array([1.0, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(features[:4], np.sin(2 * frequencies), rtol=1e-5)
    np.testing.assert_allclose(features[4:], np.cos(2 * frequencies), rtol=1e-5)


# The dense network -------------------------------------------------------------------------------


def shapes_of(jaxpr, primitive):
    """The shapes that a primitive makes, anywhere in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_of(inner, primitive)


def test_a_batch_shares_what_depends_on_time_alone():
    network = dp.networks.MLP((3,), width=8, depth=2, key=KEY)
    jaxpr = jax.make_jaxpr(jax.vmap(lambda x, t: network(x, t, None), in_axes=(0, None)))(
        jnp.zeros((5, 3)), jnp.int32(2)
    )
    assert set(shapes_of(jaxpr.jaxpr, "sin")) == {(32,)}
    products = list(shapes_of(jaxpr.jaxpr, "dot_general"))
    shared = [shape for shape in products if 5 not in shape]
    assert sorted(shared) == [(8,), (16,), (16,)]  # the time, and two layers' scales and shifts
    assert len(products) == 3 + 3  # the layers themselves, for five events


def test_categories_are_one_hot():
    network = dp.networks.MLP(
        (2,), width=8, depth=2, key=KEY, num_categories=4, output_shape=(2, 3)
    )
    assert network.first.in_features == 8
    network = randomised(network)
    outputs = [network(jnp.array(x), 1, None) for x in ([0, 1], [1, 0], [2, 0], [3, 0])]
    assert outputs[0].shape == (2, 3)
    # a category is a name: three of them are not on a line
    assert not np.allclose(outputs[2] - outputs[1], outputs[3] - outputs[2], rtol=0.1)
    process = dp.CategoricalDiffusion(
        dp.schedules.reciprocal(T), num_categories=3, base=dp.Absorbing()
    )
    model = dp.DiffusionModel(process, network, (2,))
    np.testing.assert_allclose(model.denoise(jnp.array([[3, 3]]), T).sum(-1), 1.0, rtol=1e-6)


def test_bits_are_centered():
    network = randomised(dp.networks.MLP((3,), width=8, depth=2, key=KEY))
    bits, spins = jnp.array([1, 0, 0]), jnp.array([1.0, -1.0, -1.0])
    np.testing.assert_allclose(network(bits, 2, None), network(spins, 2, None), rtol=1e-6)
    np.testing.assert_allclose(network(bits == 1, 2, None), network(spins, 2, None), rtol=1e-6)


def test_context_reaches_the_output():
    network = dp.networks.MLP((3,), width=8, depth=2, key=KEY, context_shape=(2, 2))
    network = randomised(network)
    x, one = KINDS["real"], jnp.ones((2, 2))
    assert np.all(network(x, 1, one) != network(x, 1, -one))
    with pytest.raises(ValueError, match="context is missing"):
        network(x, 1, None)
    with pytest.raises(ValueError, match="without context_shape"):
        dp.networks.MLP((3,), width=8, key=KEY)(x, 1, one)


def test_fourier_features_are_beside_the_event():
    network = dp.networks.MLP((3,), width=8, depth=2, key=KEY, fourier_features=5)
    assert network.first.in_features == 13
    x = KINDS["real"]
    features = np.asarray(network.fourier(x))
    angles = np.asarray(network.fourier.frequencies) @ np.asarray(x)
    truth = np.concatenate([x, np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(features, truth, rtol=1e-5, atol=1e-6)
    wide = dp.networks.MLP((3,), width=8, key=KEY, fourier_features=500, fourier_scale=7.0)
    scale = np.std(wide.fourier.frequencies)
    assert abs(scale - 7.0) < 4 * 7.0 / np.sqrt(2 * 1500)


# The paper's networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_radial_basis_functions_share_one(kind):
    network = randomised(dp.networks.RBF((3,), T, num_units=6, key=KEY))
    x = KINDS[kind]
    values = np.asarray(network.activations(x))
    flat = np.asarray(x, np.float64) if kind == "real" else 2.0 * np.asarray(x) - 1
    squares = np.sum((flat - np.asarray(network.centers)) ** 2, axis=1)
    truth = np.exp(-0.5 * squares / np.exp(np.asarray(network.log_widths)) ** 2)
    np.testing.assert_allclose(values, truth / truth.sum(), rtol=1e-4)
    np.testing.assert_allclose(values.sum(), 1.0, rtol=1e-6)
    far = network.activations(jnp.full(3, 1e3))  # every function underflows, their ratios do not
    np.testing.assert_allclose(far.sum(), 1.0, rtol=1e-6)


def paper_networks():
    rbf = dp.networks.RBF((3,), T, num_units=6, key=KEY)
    return {"rbf": rbf, "sigmoid-mlp": dp.networks.SigmoidMLP((3,), T, width=6, key=KEY)}


@pytest.mark.parametrize("name", paper_networks())
def test_readouts_are_one_for_each_step(name):
    network = randomised(paper_networks()[name])
    x, readout = KINDS["real"], network.readout
    for t in range(1, T + 1):
        output = network(x, t, None)
        # a linear readout of what all steps share
        weight = readout.weight + readout.step_weights[t - 1]
        bias = readout.bias + readout.step_biases[t - 1]
        np.testing.assert_allclose(output, weight @ network.activations(x) + bias, rtol=1e-5)

        # a step's own weights move that step alone
        def change(network, t=t):
            return network.readout.step_weights, network.readout.step_weights.at[t - 1].add(1.0)

        moved = eqx.tree_at(lambda n: n.readout.step_weights, network, change(network)[1])
        changed = [bool(np.any(moved(x, s, None) != network(x, s, None))) for s in range(1, T + 1)]
        assert changed == [s == t for s in range(1, T + 1)]


def test_sigmoid_layers_pass_on_what_they_see():
    """Initial weights must keep different events apart, or training does not start."""
    network = dp.networks.SigmoidMLP((20,), T, key=KEY)
    bits = jax.random.bernoulli(KEY, 0.2, (200, 20)).astype(int)
    values = np.asarray(jax.vmap(network.activations)(bits))
    assert values.shape == (200, 50)
    assert np.median(values.std(axis=0)) > 0.05
    assert np.mean(np.abs(values - 0.5) > 0.49) < 0.2


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "make_bad"),
    [
        ("event_shape=3", lambda: dp.networks.MLP(3, key=KEY)),
        (r"event_shape=\(0,\)", lambda: dp.networks.MLP((0,), key=KEY)),
        ("width=0", lambda: dp.networks.MLP((3,), width=0, key=KEY)),
        ("depth=0", lambda: dp.networks.MLP((3,), depth=0, key=KEY)),
        ("depth=True", lambda: dp.networks.MLP((3,), depth=True, key=KEY)),
        ("num_categories=1", lambda: dp.networks.MLP((3,), key=KEY, num_categories=1)),
        (r"output_shape=\(-1,\)", lambda: dp.networks.MLP((3,), key=KEY, output_shape=(-1,))),
        (r"context_shape=\(0,\)", lambda: dp.networks.MLP((3,), key=KEY, context_shape=(0,))),
        ("fourier_features=-1", lambda: dp.networks.MLP((3,), key=KEY, fourier_features=-1)),
        (
            "fourier_scale=0.0",
            lambda: dp.networks.MLP((3,), key=KEY, fourier_features=2, fourier_scale=0.0),
        ),
        ("num_steps=0", lambda: dp.networks.RBF((3,), 0, key=KEY)),
        ("num_units=0", lambda: dp.networks.RBF((3,), T, num_units=0, key=KEY)),
        (r"output_shape=\(0,\)", lambda: dp.networks.RBF((3,), T, key=KEY, output_shape=(0,))),
        ("num_steps=0", lambda: dp.networks.SigmoidMLP((3,), 0, key=KEY)),
        ("width=-1", lambda: dp.networks.SigmoidMLP((3,), T, width=-1, key=KEY)),
        ("depth=0", lambda: dp.networks.SigmoidMLP((3,), T, depth=0, key=KEY)),
    ],
)
def test_bad_arguments_are_named(error, make_bad):
    # Run-time type checks, which only the tests have, may name the argument first.
    with pytest.raises((ValueError, TypeError), match=error.split("=")[0]) as raised:
        make_bad()
    assert not isinstance(raised.value, ValueError) or error.replace("\\", "") in str(raised.value)
