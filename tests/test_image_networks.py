"""Networks for images: layouts, what starts at zero, what depends on what, and what is fast."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppl as dp
from diffppl.networks.layers.convolution import from_patches, to_patches
from diffppl.networks.layers.layout import ImageLayout
from diffppl.networks.layers.unet_blocks import GroupNorm, ResidualBlock
from diffppl.networks.sohl_dickstein.bumps import BumpReadout

from .marks import slow
from .registry import IMAGE_NETWORKS
from .test_networks import randomised

T = 7
KEY = jax.random.key(0)
KINDS = {
    "real": jax.random.normal(KEY, (6, 4)),
    "bits": jax.random.bernoulli(KEY, 0.3, (6, 4)).astype(int),
}
padding = dp.networks.padding


def paper(event_shape, num_steps=T, **options):
    options = {"conv_channels": 4, "conv_depth": 2, "num_scales": 2, "width": 4} | options
    options = {"dense_width": 8, "depth": 1, "num_bumps": 3, "key": KEY} | options
    return dp.networks.MultiScaleConv(event_shape, num_steps, **options)


def unet(event_shape, channels=(4, 8), **options):
    return dp.networks.UNet(event_shape, channels, **{"num_heads": 2, "key": KEY} | options)


def call(network, x, t=3, context=None):
    """The network's answer, compiled: op by op a U-Net takes long."""
    return eqx.filter_jit(lambda network, *a: network(*a))(network, x, jnp.asarray(t), context)


QUICK = ("multi-scale-conv", "unet")  # the others are the same again, at a compilation each


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in IMAGE_NETWORKS
    ]
)
def make(request):
    return IMAGE_NETWORKS[request.param]


# Every image network -----------------------------------------------------------------------------


@pytest.mark.parametrize("output_shape", [(6, 4), (2, 6, 4), (6, 4, 3)], ids=str)
def test_outputs_have_their_shape_and_start_at_zero(make, output_shape):
    network = make(KEY, (6, 4), output_shape, T)
    for x in KINDS.values():
        output = call(network, x)
        assert output.shape == output_shape
        assert output.dtype == jnp.float32
        np.testing.assert_array_equal(output, 0.0)


def test_gradients_reach_every_weight(make):
    network = randomised(make(KEY, (6, 4), (2, 6, 4), T))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(network):
        x = jnp.stack([KINDS["real"], jnp.flip(KINDS["real"])])
        network_of_batch = jax.vmap(lambda x, t: network(x, t, None))
        return jnp.sum(jnp.sin(network_of_batch(x, jnp.array([1, T]))))

    for leaf in map(np.asarray, jax.tree.leaves(gradient(network))):
        assert np.all(np.isfinite(leaf))
        # Taps that see zeros alone have none, nor has the bias of the keys of an attention.
        assert np.mean(leaf != 0) > 0.6


def test_a_batch_is_its_events_also_inside_a_loop(make):
    network = randomised(make(KEY, (6, 4), (6, 4), T))
    x = jax.random.normal(KEY, (3, 6, 4))
    single = jnp.stack([call(network, event) for event in x])

    @eqx.filter_jit
    def in_a_loop(network):
        def step(x, t):
            return x, jax.vmap(lambda x: network(x, t, None))(x)

        return jax.lax.scan(step, x, jnp.array([1, 3]))[1][1]

    # A bfloat16 has three digits.
    short = isinstance(network, dp.networks.MixedPrecision)
    tolerance = 0.05 * float(np.std(single)) if short else 1e-4
    np.testing.assert_allclose(in_a_loop(network), single, atol=tolerance)
    assert np.all(np.std(single, axis=0) > 0)


@pytest.mark.parametrize("make_one", [paper, *slow(unet)])
def test_both_modes_of_derivatives_agree_with_differences(make_one, x64):
    # JAX's own attention computes in single precision, which has no small differences.
    options = {"attention_levels": 0} if make_one is unet else {}
    network = randomised(make_one((6, 4), **options))
    arrays, static = eqx.partition(network, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), arrays)
    x = KINDS["real"].astype(jnp.float64)
    direction = jax.tree.map(jnp.cos, (arrays, x))

    def value(arrays, x):
        return jnp.sum(jnp.sin(eqx.combine(arrays, static)(x, 2, None)))

    @jax.jit
    def derivatives():
        def moved(step):
            return value(*jax.tree.map(lambda p, d: p + step * d, (arrays, x), direction))

        forward = jax.jvp(value, (arrays, x), direction)[1]
        products = jax.tree.map(
            lambda g, d: jnp.sum(g * d), jax.grad(value, (0, 1))(arrays, x), direction
        )
        return forward, sum(jax.tree.leaves(products)), (moved(1e-5) - moved(-1e-5)) / 2e-5

    forward, reverse, differences = derivatives()
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)
    np.testing.assert_allclose(forward, differences, rtol=1e-5)


@pytest.mark.parametrize(
    "prediction",
    [dp.predictions.Velocity(dp.predictions.UpperVariance()), dp.predictions.KernelMoments()],
    ids=["velocity-upper", "kernel-moments"],
)
def test_an_untrained_reverse_chain_is_the_forward_one(make, prediction):
    process = dp.GaussianDiffusion(dp.schedules.cosine(T))
    shape = prediction.output_shape(process, (6, 4))
    network = make(KEY, (6, 4), shape, T)
    model = dp.DiffusionModel(process, network, (6, 4), prediction=prediction)
    x = KINDS["real"]
    reverse = eqx.filter_jit(lambda t: model.reverse_kernel(x, t).base_dist)
    for t in (2, T):
        kernel, forward = reverse(jnp.asarray(t)), process.transition(x, t)
        np.testing.assert_allclose(kernel.loc, forward.loc, atol=1e-6)
        scale = np.broadcast_to(kernel.scale, (6, 4))
        np.testing.assert_allclose(scale, np.broadcast_to(forward.scale, (6, 4)), rtol=1e-5)


def test_saved_and_loaded_it_is_the_same(make, tmp_path):
    network = randomised(make(KEY, (6, 4), (6, 4), T))
    dp.save(tmp_path / "network.dppl", network)
    loaded = dp.load(tmp_path / "network.dppl")
    assert eqx.tree_equal(network, loaded)
    np.testing.assert_array_equal(call(network, KINDS["real"]), call(loaded, KINDS["real"]))


# Layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_one", [paper, *slow(unet)])
def test_where_the_channels_are_does_not_matter(make_one):
    x = jax.random.normal(KEY, (6, 4, 2))
    last = randomised(make_one((6, 4, 2), channel_axis=-1, output_shape=(2, 6, 4, 2)))
    first = randomised(make_one((2, 6, 4), channel_axis=0, output_shape=(2, 2, 6, 4)))
    between = randomised(make_one((6, 2, 4), channel_axis=1, output_shape=(2, 6, 2, 4)))
    truth = np.asarray(call(last, x))
    assert np.std(truth) > 0
    moved = call(first, jnp.moveaxis(x, -1, 0))
    np.testing.assert_allclose(np.moveaxis(moved, 1, -1), truth, rtol=1e-4, atol=1e-5)
    moved = call(between, jnp.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(moved, 2, -1), truth, rtol=1e-4, atol=1e-5)
    grey = randomised(make_one((6, 4)))
    grey_channel = randomised(make_one((6, 4, 1), channel_axis=2))
    np.testing.assert_allclose(
        call(grey, x[..., 0]), call(grey_channel, x[..., :1])[..., 0], rtol=1e-4, atol=1e-5
    )


def test_a_layout_puts_every_number_in_its_place():
    layout = ImageLayout((3, 5, 4), channel_axis=0, output_shape=(2, 3, 5, 4, 7))
    assert (layout.space, layout.inputs, layout.outputs) == ((5, 4), 3, 2 * 3 * 7)
    x = jnp.arange(60.0).reshape(3, 5, 4)
    assert layout.to_image(x, float)[1, 2, 0] == x[0, 1, 2]
    y = jnp.arange(5 * 4 * 42.0).reshape(5, 4, 42)
    raw = layout.from_image(y)
    assert raw.shape == (2, 3, 5, 4, 7)
    for i, j, k, n, m in [(0, 0, 0, 0, 0), (1, 2, 3, 1, 5), (0, 1, 4, 3, 6)]:
        assert raw[i, j, k, n, m] == y[k, n].reshape(2, 3, 7)[i, j, m]
    square = ImageLayout((2, 2), output_shape=(2, 2, 2))
    categories = ImageLayout((2, 2), output_shape=(2, 2, 2), num_categories=3)
    y = jnp.arange(8.0).reshape(2, 2, 2)
    np.testing.assert_array_equal(square.from_image(y), jnp.moveaxis(y, -1, 0))
    np.testing.assert_array_equal(categories.from_image(y), y)


def test_bits_are_centered_and_categories_one_hot():
    bits = ImageLayout((2, 2)).to_image(jnp.array([[1, 0], [0, 0]]), jnp.float32)
    np.testing.assert_array_equal(bits[..., 0], [[1, -1], [-1, -1]])
    layout = ImageLayout((2, 3), channel_axis=0, output_shape=(2, 3, 4), num_categories=5)
    image = layout.to_image(jnp.array([[0, 1, 2], [4, 3, 0]]), jnp.float32)
    assert image.shape == (3, 10)
    assert layout.outputs == 8
    np.testing.assert_array_equal(np.argmax(image.reshape(3, 2, 5), -1), [[0, 4], [1, 3], [2, 0]])


@pytest.mark.parametrize("make_one", [paper, *slow(unet)])
def test_categories_with_a_mask(make_one):
    process = dp.CategoricalDiffusion(
        dp.schedules.reciprocal(T), num_categories=3, base=dp.Absorbing()
    )
    network = randomised(make_one((6, 4), num_categories=4, output_shape=(6, 4, 3)))
    model = dp.DiffusionModel(process, network, (6, 4))
    x = dp.sample(KEY, model, (5,))
    assert x.shape == (5, 6, 4)
    assert set(np.unique(x)) <= {0, 1, 2}
    probabilities = eqx.filter_jit(model.denoise)(jnp.full((6, 4), 3), T)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("make_one", [paper, unet])
@pytest.mark.parametrize(
    ("event_shape", "channel_axis"),
    [((9,), None), ((7, 5), None), ((5, 2, 3, 4), 1), ((1, 3), None)],
    ids=str,
)
def test_signals_volumes_and_odd_sizes(make_one, event_shape, channel_axis):
    network = randomised(make_one(event_shape, channel_axis=channel_axis))
    x = jax.random.normal(KEY, event_shape)
    y = call(network, x)
    assert y.shape == event_shape
    assert np.all(call(network, x + 1) != y)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "larger", "axis"), [((8,), (19,), None), ((2, 8), (2, 19), 0)])
def test_a_unet_may_be_asked_about_larger_events(shape, larger, axis):
    """And about the size of before it says what it said."""
    network = randomised(unet(shape, channel_axis=axis, attention_levels=0))
    wide = network.resized(larger)
    small = jax.random.normal(KEY, shape)
    np.testing.assert_allclose(call(wide.resized(shape), small), call(network, small))
    x = jax.random.normal(KEY, larger)
    assert call(wide, x).shape == larger
    assert np.all(call(wide, x + 1) != call(wide, x))
    with pytest.raises(ValueError, match="must have the axes and the channels"):
        network.resized((*larger, 3))
    with pytest.raises(ValueError, match="can be halved"):
        network.resized((*larger[:-1], 1))


@pytest.mark.parametrize("space", [(6,), (4, 6), (2, 4, 2)])
def test_patches_are_squares_of_pixels_and_back(space):
    x = np.arange(3.0 * np.prod(space)).reshape(*space, 3)
    patches = to_patches(jnp.asarray(x), 2)
    assert patches.shape == (*(n // 2 for n in space), 3 * 2 ** len(space))
    first = x[(slice(2),) * len(space)]
    np.testing.assert_array_equal(patches[(0,) * len(space)], first.reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 2), x)


@pytest.mark.slow
def test_a_unet_may_work_on_patches():
    network = randomised(unet((4, 8), patch=2, output_shape=(2, 4, 8)))
    x = jax.random.normal(KEY, (4, 8))
    y = call(network, x)
    assert y.shape == (2, 4, 8)
    # Every pixel of a patch is seen, and has an answer of its own.
    slopes = jax.jacfwd(lambda x: call(network, x)[0, 0, 0])(x)
    assert np.all(slopes != 0)
    assert len(np.unique(y)) == y.size
    with pytest.raises(ValueError, match=r"patch=3 must divide .* \(4, 8\)"):
        unet((4, 8), patch=3)
    with pytest.raises(ValueError, match="patch=2 must divide"):
        network.resized((4, 7))


# The paper's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bumps", [1, 2, 10])
def test_bumps_share_one(num_bumps):
    readout = BumpReadout(1000, num_bumps)
    g = np.asarray(jax.vmap(readout.bumps)(jnp.arange(1, 1001)))
    np.testing.assert_allclose(g.sum(axis=1), 1.0, rtol=1e-6)
    assert np.all(g > 0)
    if num_bumps > 1:
        centres = 1 + 999 * np.arange(num_bumps) / (num_bumps - 1)
        width = centres[1] - centres[0]
        t = 123
        truth = np.exp(-0.5 * ((t - centres) / width) ** 2)
        np.testing.assert_allclose(g[t - 1], truth / truth.sum(), rtol=1e-4)


def test_the_layers_never_see_the_time():
    network = randomised(paper((6, 4), num_steps=20))
    x = KINDS["real"]
    coefficients = eqx.filter_jit(network.coefficients)(x)
    outputs = np.array([call(network, x, t) for t in range(1, 21)])
    bumps = np.array([network.readout.bumps(t) for t in range(1, 21)])
    truth = np.einsum("xynj,tj->txy", coefficients, bumps)
    np.testing.assert_allclose(outputs, truth, rtol=1e-4, atol=1e-5)
    assert np.all(np.std(outputs, axis=0) > 1e-3)


def test_a_constant_image_stays_constant():
    network = randomised(paper((16, 12), dense_depth=0, num_scales=3))
    y = np.asarray(call(network, jnp.full((16, 12), 0.7)))
    np.testing.assert_allclose(y, y[0, 0], rtol=1e-5)
    assert np.std(call(network, jax.random.normal(KEY, (16, 12)))) > 1e-3


def test_with_zeros_beyond_the_edge_it_stays_constant_away_from_it():
    network = randomised(paper((16, 16), dense_depth=0, conv_depth=1, padding=padding.Zeros()))
    y = np.asarray(call(network, jnp.full((16, 16), 0.7)))
    np.testing.assert_allclose(y[2:-2, 2:-2], y[8, 8], rtol=1e-5)
    assert np.all(np.abs(y[0] - y[8, 8]) > 1e-3)


def test_pathways_can_be_switched_off():
    x = jax.random.normal(KEY, (16,))

    def changes(**options):
        """Which pixels of the output the first one of the input has a part in."""
        network = randomised(paper((16,), conv_depth=2, **options))
        return np.asarray(jax.jacfwd(lambda x: call(network, x))(x)[:, 0] != 0)

    def reach(**options):
        return np.flatnonzero(changes(**options)).max()

    assert reach(dense_depth=0, num_scales=1) == 2  # two layers of window 3
    assert reach(dense_depth=0, num_scales=2) == 5  # and a block of 2 further each: 0..3, then 0..5
    assert np.all(changes(dense_depth=1, num_scales=1))
    dense = paper((16,), conv_depth=0)
    assert dense.conv == ()
    assert dense.features(x).shape == (16, 2)
    assert paper((16,), dense_depth=0).dense == ()
    assert paper((16,)).features(x).shape == (16, 4 + 2)


def test_layers_pass_on_what_they_see():
    """Initial weights must keep different images apart, or training does not start."""
    network = dp.networks.MultiScaleConv((12, 12), T, dense_depth=0, key=KEY)
    x = jax.random.normal(KEY, (50, 12, 12))
    features = np.asarray(jax.jit(jax.vmap(network.features))(x))
    assert np.median(features.std(axis=0)) > 0.05
    assert np.max(np.abs(features)) < 20


# The U-Net ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_torus_what_is_shifted_round_gives_what_is_shifted_round():
    network = randomised(unet((8, 12), padding=padding.Periodic()))
    x = jax.random.normal(KEY, (8, 12))
    truth = np.roll(call(network, x), (2, -4), axis=(0, 1))
    np.testing.assert_allclose(
        call(network, jnp.roll(x, (2, -4), axis=(0, 1))), truth, rtol=1e-3, atol=1e-4
    )
    with_edges = randomised(unet((8, 12)))
    moved = np.asarray(call(with_edges, jnp.roll(x, (2, -4), axis=(0, 1))))
    assert np.max(np.abs(moved - np.roll(call(with_edges, x), (2, -4), axis=(0, 1)))) > 1e-2


def test_time_matters():
    network = randomised(unet((6, 4)))
    outputs = np.array([call(network, KINDS["real"], t) for t in range(1, T + 1)])
    assert np.min(np.abs(np.diff(outputs, axis=0))) > 1e-6


def test_context_reaches_the_output():
    network = randomised(unet((6, 4), context_shape=(2, 2)))
    x, one = KINDS["real"], jnp.ones((2, 2))
    assert np.all(call(network, x, 1, one) != call(network, x, 1, -one))
    with pytest.raises(ValueError, match="context is missing"):
        network(x, 1, None)
    with pytest.raises(ValueError, match="without context_shape"):
        unet((6, 4))(x, 1, one)


@pytest.mark.slow
def test_labels_are_names():
    network = randomised(unet((6, 4), num_classes=3))
    x = KINDS["real"]
    outputs = np.array([call(network, x, 1, jnp.asarray(label)) for label in (0, 1, 2, -1)])
    for i in range(4):
        for j in range(i):
            assert np.max(np.abs(outputs[i] - outputs[j])) > 1e-3
    # `fit` and programs have contexts of real numbers
    np.testing.assert_array_equal(call(network, x, 1, jnp.asarray(2.0)), outputs[2])
    process = dp.GaussianDiffusion(dp.schedules.cosine(T))
    model = dp.DiffusionModel(process, network, (6, 4), context_shape=())
    draws = dp.sample(KEY, model, (2,), context=jnp.array([0.0, 1.0, 2.0]))
    assert draws.shape == (2, 3, 6, 4)


def test_group_norm_is_that_of_equinox():
    x = 3.0 + 2.0 * jax.random.normal(KEY, (5, 4, 24))
    ours, theirs = GroupNorm(24), eqx.nn.GroupNorm(6, 24)
    assert ours.num_groups == 6
    truth = jnp.moveaxis(theirs(jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(ours(x), truth, rtol=1e-4, atol=1e-5)
    assert [GroupNorm(n).num_groups for n in (1, 6, 7, 64, 256)] == [1, 1, 1, 16, 32]


def test_attention_is_at_the_lowest_levels():
    blocks = [
        [block.attention is not None for (block,) in part]
        for network in [unet((8, 8), (4, 4, 8), attention_levels=2)]
        for part in (network.down, network.up)
    ]
    assert blocks == [[False, True, True]] * 2
    none = unet((8, 8), attention_levels=0)
    every = [*none.down[0], *none.down[1], *none.middle]
    assert all(isinstance(b, ResidualBlock) and b.attention is None for b in every)


@pytest.mark.slow
def test_a_unet_learns_a_gaussian_field():
    """It comes close to the exact answer, which is the best that there is, and not beyond it."""
    size = 6
    distance = np.minimum(np.arange(size), size - np.arange(size))
    row = np.exp(-0.5 * (distance / 1.2) ** 2)
    circulant = np.stack([np.roll(row, i) for i in range(size)])
    covariance = np.kron(circulant, circulant) + 0.05 * np.eye(size**2)
    covariance /= covariance[0, 0]
    root = np.linalg.cholesky(covariance)
    rng = np.random.default_rng(0)
    data, test = ((rng.standard_normal((n, size**2)) @ root.T) for n in (5_000, 500))
    schedule = dp.schedules.cosine(10)
    process, scaling = dp.GaussianDiffusion(schedule), dp.Scaling(0.0, 1.0)
    exact = dp.DiffusionModel(
        process,
        dp.denoisers.Gaussian(schedule, np.zeros(size**2), covariance),
        (size**2,),
        scaling=scaling,
    )
    model = dp.DiffusionModel(
        process,
        unet((size, size), (8, 16), padding=padding.Periodic()),
        (size, size),
        scaling=scaling,
    )
    images = data.reshape(-1, size, size)
    fitted = dp.fit(
        KEY, model, images, num_iterations=300, batch_size=64, ema_decay=0.98, progress_bar=False
    ).model
    best, start = dp.elbo(KEY, exact, test), dp.elbo(KEY, model, test.reshape(-1, size, size))
    found = dp.elbo(KEY, fitted, test.reshape(-1, size, size))
    gap, error = best.value - found.value, np.hypot(found.standard_error, best.standard_error)
    assert gap > -4 * error
    assert gap < 0.2 * (best.value - start.value)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "make_bad"),
    [
        ("event_shape=28", lambda: unet(28)),
        ("channel_axis=None", lambda: unet((3, 8, 8))),
        ("channel_axis=3", lambda: unet((3, 8, 8), channel_axis=3)),
        ("channel_axis=0", lambda: unet((8,), channel_axis=0)),
        (r"output_shape=\(8, 7\)", lambda: unet((8, 8), output_shape=(8, 7))),
        ("num_categories=1", lambda: unet((8, 8), num_categories=1)),
        (r"channels=\(\)", lambda: unet((8, 8), ())),
        (r"channels=\(4, 0\)", lambda: unet((8, 8), (4, 0))),
        ("channels=.* at most 4", lambda: unet((8, 8), (4,) * 5)),
        ("num_blocks=0", lambda: unet((8, 8), num_blocks=0)),
        ("attention_levels=-1", lambda: unet((8, 8), attention_levels=-1)),
        ("num_heads=3 must divide", lambda: unet((8, 8), num_heads=3)),
        ("num_classes=3 means", lambda: unet((8, 8), num_classes=3, context_shape=(2,))),
        ("num_classes=0", lambda: unet((8, 8), num_classes=0)),
        ("conv_depth=0 and dense_depth=0", lambda: paper((8, 8), conv_depth=0, dense_depth=0)),
        ("num_scales=5.* at most 4", lambda: paper((8, 8), num_scales=5)),
        ("num_bumps=0", lambda: paper((8, 8), num_bumps=0)),
        ("num_steps=0", lambda: paper((8, 8), num_steps=0)),
        ("width=0", lambda: paper((8, 8), width=0)),
        ("depth=0", lambda: paper((8, 8), depth=0)),
        ("conv_channels=0", lambda: paper((8, 8), conv_channels=0)),
        ("dense_features=0", lambda: paper((8, 8), dense_features=0)),
    ],
)
def test_bad_arguments_are_named(error, make_bad):
    # Run-time type checks, which only the tests have, may name the argument first.
    with pytest.raises((ValueError, TypeError)) as raised:
        make_bad()
    if isinstance(raised.value, ValueError):
        raised.match(error)
    else:
        raised.match(error.split("=")[0])


def test_an_image_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"x_t has shape \(8, 6\).*event_shape=\(8, 8\)"):
        unet((8, 8))(jnp.zeros((8, 6)), 1, None)
