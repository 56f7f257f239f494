"""Convolution that is as fast inside a compiled loop as outside of it.

    y[i, o] = sum_{j, c} x[i + j - before, c] w[j, c, o],    x zero beyond its edges,

for any number of spatial axes, channels last. XLA's CPU backend knows one layout of a convolution
well: `NHWC` images, `HWIO` weights. Anything else it rearranges first, but not inside a loop, where
it falls back to code many times slower; and JAX's own gradients of a convolution are in other
layouts. So this is `jax.lax.conv_general_dilated` once more, as a primitive whose gradients are
convolutions of the same kind, and which on CPUs brings its operands into the known layout itself.
Elsewhere it is JAX's, to the letter.

It is linear in either argument, so derivatives of every order and both modes are its own.
"""

from collections.abc import Sequence
from typing import Any

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
    """The convolution of one image, or of a batch of them.

    Args:
        x: shape `(*space, inputs)`, or with one leading axis more.
        weight: shape `(*window, inputs, outputs)`, with a window axis for each spatial one.
        padding: for each spatial axis, how many zeros come before it and after it, fewer than the
            window is long.
    """
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    x, weight = x.astype(dtype), weight.astype(dtype)
    if x.ndim == weight.ndim:
        return _convolve_p.bind(x, weight, padding=padding, layout=_known(x.ndim))
    return convolve(x[None], weight, padding)[0]


def _known(ndim: int) -> ConvDimensionNumbers:
    """Batch, space and channels; of weights window, inputs and outputs."""
    space = tuple(range(1, ndim - 1))
    image = (0, ndim - 1, *space)
    return ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


# What it is --------------------------------------------------------------------------------------


def _lax(x: Array, weight: Array, *, padding: Padding, layout: ConvDimensionNumbers) -> Array:
    strides = (1,) * len(padding)
    return jax.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout)


def _on_cpu(x: Array, weight: Array, *, padding: Padding, layout: ConvDimensionNumbers) -> Array:
    known = _known(x.ndim)
    x = jnp.transpose(x, _moves(layout.lhs_spec, known.lhs_spec))
    weight = jnp.transpose(weight, _moves(layout.rhs_spec, known.rhs_spec))
    y = _lax(x, weight, padding=padding, layout=known)
    return jnp.transpose(y, _moves(known.out_spec, layout.out_spec))


def _moves(from_spec: Sequence[int], to_spec: Sequence[int]) -> tuple[int, ...]:
    """Which axis of the one layout goes where in the other."""
    axes = dict(zip(to_spec, from_spec, strict=True))
    return tuple(axes[i] for i in range(len(axes)))


def _abstract(x: Any, weight: Any, *, padding: Padding, layout: ConvDimensionNumbers) -> Any:
    (batch, _, *space), (outputs, _, *window) = layout.lhs_spec, layout.rhs_spec
    sizes = [x.shape[batch], weight.shape[outputs]]
    for i, j, (before, after) in zip(space, window, padding, strict=True):
        sizes.append(x.shape[i] + before + after - weight.shape[j] + 1)
    by_axis = dict(zip(layout.out_spec, sizes, strict=True))
    return ShapedArray(tuple(by_axis[i] for i in range(len(by_axis))), x.dtype)


# Its gradients: the same, with the parts of the axes exchanged ------------------------------------


def _swapped(spec: tuple[int, ...]) -> tuple[int, ...]:
    return (spec[1], spec[0], *spec[2:])


def _to_x(ct: Array, x: Any, weight: Array, *, padding: Padding, layout: Any) -> Array:
    del x
    window = layout.rhs_spec[2:]
    padding = tuple(
        (weight.shape[i] - 1 - before, weight.shape[i] - 1 - after)
        for i, (before, after) in zip(window, padding, strict=True)
    )
    layout = ConvDimensionNumbers(layout.out_spec, _swapped(layout.rhs_spec), layout.lhs_spec)
    return _convolve_p.bind(ct, jnp.flip(weight, window), padding=padding, layout=layout)


def _to_weight(ct: Array, x: Array, weight: Any, *, padding: Padding, layout: Any) -> Array:
    del weight
    specs = (layout.lhs_spec, layout.out_spec, layout.rhs_spec)
    layout = ConvDimensionNumbers(*map(_swapped, specs))
    return _convolve_p.bind(x, ct, padding=padding, layout=layout)


# Batches: of images they join the batch, of weights the outputs -----------------------------------


def _batch(args: Any, dims: Any, *, padding: Padding, layout: Any) -> tuple[Array, int]:
    (x, weight), (x_dim, weight_dim) = args, dims
    if x_dim is not None and weight_dim is not None:

        def one(x: Array, weight: Array) -> Array:
            return _lax(x, weight, padding=padding, layout=layout)

        return jax.vmap(one, dims)(x, weight), 0
    if weight_dim is None:
        size, axis = x.shape[x_dim], layout.out_spec[0]
        x = _join(x, x_dim, layout.lhs_spec[0])
    else:
        size, axis = weight.shape[weight_dim], layout.out_spec[1]
        weight = _join(weight, weight_dim, layout.rhs_spec[0])
    y = _convolve_p.bind(x, weight, padding=padding, layout=layout)
    return y.reshape(*y.shape[:axis], size, -1, *y.shape[axis + 1 :]), axis


def _join(x: Array, dim: Any, axis: int) -> Array:
    """Make axis `dim` the slower part of what is axis `axis` without it."""
    x = jnp.moveaxis(x, dim, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


_convolve_p = Primitive("diffppl_convolve")
_convolve_p.def_impl(_lax)
_convolve_p.def_abstract_eval(_abstract)
ad.defbilinear(_convolve_p, _to_x, _to_weight)
batching.primitive_batchers[_convolve_p] = _batch
mlir.register_lowering(_convolve_p, mlir.lower_fun(_lax, multiple_results=False))
mlir.register_lowering(_convolve_p, mlir.lower_fun(_on_cpu, multiple_results=False), "cpu")
