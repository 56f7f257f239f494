"""Convolutions and what else images are worked on with: against sums written out, and JAX's own."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffppl.networks.layers import padding
from diffppl.networks.layers.convolution import Convolution, num_resolutions, pool, upsample
from diffppl.networks.layers.convolve import convolve

from .registry import PADDINGS

KEY = jax.random.key(0)
PADDING = ((1, 1), (2, 0))


def written_out(x, weight, zeros):
    """The convolution of one image by its definition."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    *window, _, outputs = weight.shape
    x = np.pad(x, (*zeros, (0, 0)))
    space = [size - w + 1 for size, w in zip(x.shape[:-1], window, strict=True)]
    y = np.zeros((*space, outputs))
    for pixel in itertools.product(*map(range, space)):
        for offset in itertools.product(*map(range, window)):
            seen = x[tuple(i + j for i, j in zip(pixel, offset, strict=True))]
            y[pixel] += seen @ weight[offset]
    return y


def of_jax(x, weight):
    return jax.lax.conv_general_dilated(
        x[None], weight, (1, 1), PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def ours(x, weight):
    return convolve(x, weight, PADDING)


def images():
    keys = jax.random.split(KEY, 2)
    return jax.random.normal(keys[0], (5, 6, 7, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))


def assert_all_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, other)


# The primitive -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "window", "zeros"),
    [
        ((9,), (3,), ((2, 0),)),
        ((6, 4), (3, 1), ((1, 1), (0, 0))),
        ((6, 5), (5, 3), ((2, 1), (0, 2))),
        ((3, 4, 2), (3, 3, 1), ((1, 1), (0, 1), (0, 0))),
    ],
    ids=str,
)
def test_a_convolution_is_its_sum(space, window, zeros):
    keys = jax.random.split(KEY, 2)
    x = jax.random.normal(keys[0], (*space, 2))
    weight = jax.random.normal(keys[1], (*window, 2, 3))
    y = jax.jit(convolve, static_argnums=2)(x, weight, zeros)
    np.testing.assert_allclose(y, written_out(x, weight, zeros), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(convolve(x, weight, zeros), y, rtol=1e-5, atol=1e-5)
    stack = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(convolve(stack, weight, zeros)[1], 2 * y, rtol=1e-5, atol=1e-5)


def scalar(function):
    """A number that every entry of a batch's output enters in its own way."""

    def of_batch(x, weight):
        y = jax.vmap(function, (0, None))(x, weight)
        return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape)))

    return of_batch


def gradient(function):
    return jax.grad(function, (0, 1))


def derivative(function):
    return lambda x, weight: jax.jvp(function, (x, weight), (jnp.cos(x), jnp.sin(weight)))[1]


@pytest.mark.parametrize(
    "of",
    [
        gradient,
        derivative,
        lambda f: derivative(gradient(f)),
        lambda f: gradient(derivative(f)),
        lambda f: derivative(derivative(f)),
    ],
    ids=["reverse", "forward", "forward-over-reverse", "reverse-over-forward", "twice-forward"],
)
def test_derivatives_are_those_of_jax(of, x64):
    x, weight = images()
    both = jax.jit(lambda *a: [of(scalar(f))(*a) for f in (ours, of_jax)])
    assert_all_close(*both(x, weight))


@pytest.mark.parametrize("axes", [(3, None), (None, 2), (0, 4)], ids=str)
def test_batches_of_either_argument(axes, x64):
    x, weight = images()
    x, weight = x[0], jnp.stack([weight, jnp.cos(weight)])
    x = x if axes[0] is None else jnp.stack([x, jnp.sin(x)], axis=axes[0])
    weight = weight[0] if axes[1] is None else jnp.moveaxis(weight, 0, axes[1])

    @jax.jit
    def all_of(x, weight):
        # Gradients within a batch are batches of convolutions of the other kinds.
        return [
            (
                jax.vmap(f, axes)(x, weight),
                jax.vmap(gradient(lambda *a, f=f: jnp.sum(jnp.sin(f(*a)))), axes)(x, weight),
            )
            for f in (ours, of_jax)
        ]

    assert_all_close(*all_of(x, weight))


def test_inside_a_loop_every_convolution_has_the_layout_that_is_fast():
    if jax.default_backend() != "cpu":
        pytest.skip("a matter of CPUs")
    x, weight = images()
    weight = weight[..., :3]  # as many channels out as in

    def descend(weight, _):
        def loss(weight):
            return jnp.sum(jax.vmap(ours, (0, None))(jnp.tanh(ours_twice(x, weight)), weight) ** 2)

        return weight - 0.01 * jax.grad(loss)(weight), None

    def ours_twice(x, weight):
        return jax.vmap(lambda x: ours(jnp.tanh(ours(x, weight)), weight))(x)

    program = jax.jit(lambda weight: jax.lax.scan(descend, weight, None, length=3)[0])
    compiled = program.lower(weight).compile().as_text()
    convolutions = re.findall(r" = f32\S*?(\{[\d,]*\})\S* convolution\(.*", compiled)
    labels = re.findall(r"convolution\(.*dim_labels=([^,\s]*)", compiled)
    assert len(labels) == 3 + 3 + 2  # forward, to the weights, to what is not the first input
    assert set(labels) == {"b01f_01io->b01f"}
    assert set(convolutions) == {"{3,2,1,0}"}


# The layer and what lies beyond the edges ---------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("mode", PADDINGS)
def test_a_layer_keeps_the_size_and_sees_beyond_the_edge(mode, window):
    layer = Convolution(2, 3, 2, window, key=KEY, padding=PADDINGS[mode]())
    x = jax.random.normal(KEY, (6, 5, 2))
    width = window // 2
    extended = np.pad(x, ((width, width), (width, width), (0, 0)), mode=mode)
    truth = written_out(extended, layer.weight, ((0, 0), (0, 0)))
    np.testing.assert_allclose(layer(x), truth, rtol=1e-4, atol=1e-5)


def test_a_layer_keeps_the_variance():
    layer = Convolution(8, 500, 2, key=KEY, padding=padding.Periodic())
    variances = np.var(layer(jax.random.normal(KEY, (16, 16, 8))), axis=(0, 1))
    # each is about 1, with weights of its own: 72 of them
    assert abs(variances.mean() - 1) < 4 * variances.std() / np.sqrt(500)


# Smaller and larger ------------------------------------------------------------------------------


def test_pooling_takes_means_of_blocks():
    x = np.arange(24.0).reshape(4, 6, 1)
    truth = [[[(0 + 1 + 6 + 7) / 4], [5.5], [7.5]], [[15.5], [17.5], [19.5]]]
    np.testing.assert_allclose(pool(jnp.asarray(x), 2), truth)
    odd = pool(jnp.array([[1.0], [3.0], [7.0], [4.0], [10.0]]), 2)
    np.testing.assert_allclose(odd, [[2.0], [5.5], [10.0]])
    odd = pool(jnp.array([[1.0], [3.0], [7.0], [4.0], [10.0]]), 4)
    np.testing.assert_allclose(odd, [[3.75], [10.0]])
    volume = jax.random.normal(KEY, (4, 6, 2, 3))
    np.testing.assert_allclose(pool(volume, 2)[1, 2, 0], volume[2:, 4:].mean((0, 1, 2)), rtol=1e-5)


def test_upsampling_repeats_pixels():
    x = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    truth = np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)
    np.testing.assert_array_equal(upsample(jnp.asarray(x), 2, (4, 4)), truth)
    np.testing.assert_array_equal(upsample(jnp.asarray(x), 2, (3, 4)), truth[:3])
    even = jax.random.normal(KEY, (4, 2, 3))
    np.testing.assert_allclose(pool(upsample(even, 4, (16, 8)), 4), even, rtol=1e-6)


@pytest.mark.parametrize("space", [(1,), (2,), (3,), (5, 8), (28, 28), (64, 3)], ids=str)
def test_an_image_can_be_halved_so_often(space):
    sizes, x = 1, jnp.zeros((*space, 1))
    while max(x.shape[:-1]) > 1:
        x, sizes = pool(x, 2), sizes + 1
    assert num_resolutions(space) == sizes
