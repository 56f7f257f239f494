"""A convolution primitive that is as fast inside a compiled loop as outside.

    y[i, o] = sum_{j, c} x[i + j - before, c] w[j, c, o],    x zero beyond its edges,

for any number of spatial axes, channels last. XLA's CPU backend has a fast implementation for one
layout only: `NHWC` images, `HWIO` weights. It transposes other layouts first, but not inside a
loop, where it falls back to code many times slower; and JAX's gradients of a convolution use other
layouts. This primitive is `jax.lax.conv_general_dilated` with gradients that are convolutions of
the same primitive, and on CPUs its lowering transposes the operands to the fast layout. On other
platforms it lowers to JAX's convolution unchanged.

It is bilinear, so derivatives of every order, in both modes, are expressed by the primitive itself.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.lax import ConvDimensionNumbers
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], ...]


def convolve(
    x: Float[Array, "*batch_and_space inputs"],
    weight: Float[Array, "*window inputs outputs"],
    padding: Padding,
) -> Float[Array, "*batch_and_less_space outputs"]:
    """Convolve one image, or a batch of images.

    Args:
        x: shape `(*space, inputs)`, or with a leading batch axis.
        weight: shape `(*window, inputs, outputs)`, with a window axis for each spatial one.
        padding: for each spatial axis, the numbers of zeros before and after it, less than the
            length of the window.
    """
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    x, weight = x.astype(dtype), weight.astype(dtype)
    if x.ndim == weight.ndim:
        return _convolve_p.bind(x, weight, padding=padding, layout=_channels_last(x.ndim))
    return convolve(x[None], weight, padding)[0]


def _channels_last(ndim: int) -> ConvDimensionNumbers:
    """Return the channels-last layout, which is fast on CPUs: `NHWC`, `HWIO` for two axes."""
    # Specs list the positions of batch, channels and space; of outputs, inputs and window.
    space = tuple(range(1, ndim - 1))
    image = (0, ndim - 1, *space)
    return ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


# Implementation and lowering ----------------------------------------------------------------------


def _lax(x: Array, weight: Array, *, padding: Padding, layout: ConvDimensionNumbers) -> Array:
    strides = (1,) * len(padding)
    return jax.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout)


def _on_cpu(x: Array, weight: Array, *, padding: Padding, layout: ConvDimensionNumbers) -> Array:
    fast = _channels_last(x.ndim)
    x = jnp.transpose(x, _permutation(layout.lhs_spec, fast.lhs_spec))
    weight = jnp.transpose(weight, _permutation(layout.rhs_spec, fast.rhs_spec))
    y = _lax(x, weight, padding=padding, layout=fast)
    return jnp.transpose(y, _permutation(fast.out_spec, layout.out_spec))


def _permutation(from_spec: Sequence[int], to_spec: Sequence[int]) -> tuple[int, ...]:
    """Return the axes for `jnp.transpose` from one layout to another."""
    axes = dict(zip(to_spec, from_spec, strict=True))
    return tuple(axes[i] for i in range(len(axes)))


def _abstract(
    x: ShapedArray, weight: ShapedArray, *, padding: Padding, layout: ConvDimensionNumbers
) -> ShapedArray:
    """Return the abstract value of the output."""
    (batch, _, *space), (outputs, _, *window) = layout.lhs_spec, layout.rhs_spec
    sizes = [x.shape[batch], weight.shape[outputs]]
    for i, j, (before, after) in zip(space, window, padding, strict=True):
        sizes.append(x.shape[i] + before + after - weight.shape[j] + 1)
    by_axis = dict(zip(layout.out_spec, sizes, strict=True))
    return ShapedArray(tuple(by_axis[i] for i in range(len(by_axis))), x.dtype)


# Transpose rules: convolutions with exchanged roles of the axes -----------------------------------


def _swapped(spec: Sequence[int]) -> tuple[int, ...]:
    """Exchange the first two roles of a layout: batch and channels, or outputs and inputs."""
    return (spec[1], spec[0], *spec[2:])


def _transpose_x(
    ct: Array,
    x: object,
    weight: Array,
    *,
    padding: Padding,
    layout: ConvDimensionNumbers,
) -> Array:
    """Convolve the cotangent with the flipped weights, inputs and outputs exchanged."""
    del x
    window = layout.rhs_spec[2:]
    # This padding restores the size of x. Padding less than the window keeps it non-negative.
    padding = tuple(
        (weight.shape[i] - 1 - before, weight.shape[i] - 1 - after)
        for i, (before, after) in zip(window, padding, strict=True)
    )
    layout = ConvDimensionNumbers(layout.out_spec, _swapped(layout.rhs_spec), layout.lhs_spec)
    return _convolve_p.bind(ct, jnp.flip(weight, window), padding=padding, layout=layout)


def _transpose_weight(
    ct: Array,
    x: Array,
    weight: object,
    *,
    padding: Padding,
    layout: ConvDimensionNumbers,
) -> Array:
    """Convolve x with the cotangent as weights, summing over the batch as input channels."""
    del weight
    specs = (layout.lhs_spec, layout.out_spec, layout.rhs_spec)
    layout = ConvDimensionNumbers(*map(_swapped, specs))
    return _convolve_p.bind(x, ct, padding=padding, layout=layout)


# Batching: batches of images extend the batch axis, batches of weights the output channels --------


def _batch(
    args: Sequence[Array],
    dims: Sequence[int | None],
    *,
    padding: Padding,
    layout: ConvDimensionNumbers,
) -> tuple[Array, int]:
    (x, weight), (x_dim, weight_dim) = args, dims
    if x_dim is not None and weight_dim is not None:

        def one(x: Array, weight: Array) -> Array:
            return _lax(x, weight, padding=padding, layout=layout)

        # Each example has its own weights: JAX's batching rule, a grouped convolution.
        return jax.vmap(one, dims)(x, weight), 0
    if x_dim is not None:
        size, axis = x.shape[x_dim], layout.out_spec[0]
        x = _join(x, x_dim, layout.lhs_spec[0])
    else:
        assert weight_dim is not None  # the rule is for one batched operand or two
        size, axis = weight.shape[weight_dim], layout.out_spec[1]
        weight = _join(weight, weight_dim, layout.rhs_spec[0])
    y = _convolve_p.bind(x, weight, padding=padding, layout=layout)
    return y.reshape(*y.shape[:axis], size, -1, *y.shape[axis + 1 :]), axis


def _join(x: Array, dim: int, axis: int) -> Array:
    """Merge axis `dim` into axis `axis` of the unbatched array, as its slower part."""
    x = jnp.moveaxis(x, dim, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


_convolve_p = Primitive("diffppl_convolve")
_convolve_p.def_impl(_lax)
_convolve_p.def_abstract_eval(_abstract)
ad.defbilinear(_convolve_p, _transpose_x, _transpose_weight)
batching.primitive_batchers[_convolve_p] = _batch
mlir.register_lowering(_convolve_p, mlir.lower_fun(_lax, multiple_results=False))
mlir.register_lowering(_convolve_p, mlir.lower_fun(_on_cpu, multiple_results=False), "cpu")
