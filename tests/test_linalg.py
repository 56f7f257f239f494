"""Small linear algebra against LAPACK's: values, accuracy, derivatives, and what compiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from diffppl import linalg

from . import hlo
from .marks import slow

SIZES = [2, 9, *slow(1, 3, 8, 17, 33)]
FLOAT32 = np.finfo(np.float32)


def rotated(rng, spectra):
    """Symmetric matrices with these eigenvalues (the last axis), in float64."""
    m = spectra.shape[-1]
    rotations = np.linalg.qr(rng.normal(size=(len(spectra), m, m)))[0]
    return (rotations * spectra[:, None, :]) @ rotations.swapaxes(1, 2)


def covariances(m, condition, num=20):
    """Random covariances of unlike scales and a condition number."""
    rng = np.random.default_rng(m)
    found = rotated(rng, np.tile(np.geomspace(1, 1 / condition, m), (num, 1)))
    return found * np.geomspace(1e-3, 1e3, num)[:, None, None]


def symmetric_matrices(m):
    """Random and hard ones: equal, clustered, graded or zero eigenvalues, all in float64."""
    rng = np.random.default_rng(m)
    spectra = [
        *rng.normal(size=(10, m)),
        *np.geomspace(1, [1e-3, 1e-6, 1e-12], m).T,
        np.where(np.arange(m) < m // 2, 1.0, 2.0),
        np.where(np.arange(m) % 2, 1.0, -1.0),
        np.eye(m)[0],
        np.where(np.arange(m) < (m + 1) // 2, rng.uniform(1, 2, m), 0.0),
        1 + 1e-6 * rng.normal(size=m),
        np.zeros(m),
    ]
    places = np.arange(m)
    whole = [
        np.eye(m),
        np.eye(m)[::-1],
        np.ones((m, m)),
        scipy.linalg.hilbert(m),
        np.minimum.outer(places, places) + 1.0,
        np.diag(rng.normal(size=m)),
        np.where(np.abs(np.subtract.outer(places, places)) == 1, -1.0, 2.0 * np.eye(m)),
    ]
    return np.concatenate([rotated(rng, np.stack(spectra)), np.stack(whole)])


def double(x):
    return np.asarray(x, np.float64)


def norms(x):
    return np.linalg.norm(double(x), axis=(1, 2))


def mapped(function, in_axes=0):
    """Over a batch, compiled at once."""
    return jax.jit(jax.vmap(function, in_axes=in_axes))


def in_x64(dtype):
    return jax.enable_x64(dtype == np.float64)


# Values, as accurate as LAPACK's -----------------------------------------------------------------

CONDITIONS = [
    (np.float32, 1e6),
    pytest.param(np.float32, 1.0, marks=pytest.mark.slow),
    pytest.param(np.float64, 1e12, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "condition"), CONDITIONS)
@pytest.mark.parametrize("m", SIZES)
def test_cholesky_is_as_accurate_as_lapack(m, dtype, condition):
    with in_x64(dtype):
        matrices = jnp.asarray(covariances(m, condition), dtype)
        here = mapped(linalg.cholesky)(matrices)
        lapack = jnp.linalg.cholesky(matrices)
    assert here.dtype == dtype
    np.testing.assert_array_equal(np.triu(here, 1), 0.0)

    def residual(factor):
        factor, matrix = double(factor), double(matrices)
        return norms(factor @ factor.swapaxes(1, 2) - matrix) / norms(matrix) / np.finfo(dtype).eps

    assert residual(here).max() <= 2 * residual(lapack).max() + 1

    def error(factor):
        truth = np.linalg.slogdet(double(matrices))[1]  # itself good to condition 1e-16
        return np.abs(mapped(linalg.log_det)(jnp.asarray(factor)) - truth)

    with in_x64(dtype):
        inflation = m * np.finfo(dtype).eps * (np.abs(error(lapack)).max() + m + condition)
        assert error(here).max() <= 2 * error(lapack).max() + inflation


@pytest.mark.parametrize(("dtype", "condition"), CONDITIONS)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("columns", [(), (7,), *slow((1,))], ids=str)
def test_solutions_are_as_accurate_as_lapack(m, dtype, condition, columns):
    rng = np.random.default_rng(m)
    with in_x64(dtype):
        matrices = jnp.asarray(covariances(m, condition), dtype)
        factors = jnp.linalg.cholesky(matrices)
        b = jnp.asarray(rng.normal(size=(len(matrices), m, *columns)), dtype)
        upper = np.asarray(factors.mT) + np.tril(rng.normal(size=(m, m)), -1).astype(dtype)
        lapack = mapped(partial(jax.scipy.linalg.solve_triangular, lower=True))
        cases = [
            (linalg.solve_triangular, lapack, factors, factors),
            (partial(linalg.solve_triangular, transpose=True), None, factors, factors.mT),
            (linalg.solve_triangular, lapack, upper.mT, factors),  # one triangle is read
            (linalg.cholesky_solve, None, factors, factors @ factors.mT),
            (linalg.solve, None, matrices, matrices),
        ]
        functions, givens = zip(*((here, given) for here, _, given, _ in cases), strict=True)
        solutions = jax.jit(
            lambda givens: [jax.vmap(f)(x, b) for f, x in zip(functions, givens, strict=True)]
        )(givens)
        for x, (_, there, given, whole) in zip(solutions, cases, strict=True):
            assert x.dtype == dtype
            assert x.shape == b.shape
            y = np.linalg.solve(whole, b.reshape(len(b), m, -1)).reshape(b.shape)
            if there is not None:
                y = there(given, b)

            def residual(x, whole=whole):
                x, right = (double(z).reshape(len(b), m, -1) for z in (x, b))
                rest = norms(double(whole) @ x - right)
                return rest / (norms(whole) * norms(x)) / np.finfo(dtype).eps

            assert residual(x).max() <= 2 * residual(y).max() + 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [2, 9, *slow(1, 3, 8, 12)])
def test_eigenvalues_and_vectors_are_as_accurate_as_lapack(m, dtype):
    with in_x64(dtype):
        matrices = jnp.asarray(symmetric_matrices(m), dtype)
        here = mapped(linalg.eigh)(matrices)
        lapack = jnp.linalg.eigh(matrices)
    values, vectors = here
    assert values.dtype == vectors.dtype == dtype
    assert np.all(np.diff(values, axis=1) >= 0)

    def residual(values, vectors):
        matrix, values, vectors = map(double, (matrices, values, vectors))
        off = norms(matrix @ vectors - vectors * values[:, None]) / np.maximum(norms(matrix), 1e-99)
        turn = norms(vectors.swapaxes(1, 2) @ vectors - np.eye(m))
        return np.maximum(off, turn) / np.finfo(dtype).eps

    assert residual(*here).max() <= 3 * residual(*lapack).max() + 3
    scale = np.abs(double(lapack[0])).max(axis=1, keepdims=True)
    error = np.abs(double(values) - double(lapack[0]))
    assert np.all(error <= 4 * m * np.finfo(dtype).eps * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", SIZES)
def test_the_nearest_positive_matrix(m, dtype):
    rng = np.random.default_rng(m)
    matrices = symmetric_matrices(m)
    skew = rng.normal(size=matrices.shape) * norms(matrices)[:, None, None] / m
    matrices = (matrices + skew - skew.swapaxes(1, 2)).astype(dtype)
    values, vectors = np.linalg.eigh((double(matrices) + double(matrices).swapaxes(1, 2)) / 2)
    truth = (vectors * np.maximum(values, 0.0)[:, None]) @ vectors.swapaxes(1, 2)
    with in_x64(dtype):
        found = mapped(linalg.nearest_psd)(jnp.asarray(matrices))
        again = mapped(linalg.nearest_psd)(found)
    assert found.dtype == dtype
    rounding = 4 * m * np.finfo(dtype).eps * norms(matrices)
    assert np.all(norms(double(found) - truth) <= rounding)
    assert np.all(norms(double(again) - double(found)) <= rounding)
    np.testing.assert_array_equal(found, np.swapaxes(found, 1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", SIZES)
def test_the_largest_eigenvalue_is_bounded_from_above_within_one_percent(m, dtype):
    """The hardest are those with some eigenvalues equal to the largest, and the others zero."""
    rng = np.random.default_rng(m)
    equal = np.tril(np.ones((m, m)))
    spectra = np.concatenate([equal, 0.5 + 0.5 * equal, rng.uniform(size=(20, m)) ** 3])
    spectra = spectra * np.geomspace(1e-12, 1e12, len(spectra))[:, None]
    with in_x64(dtype):
        matrices = jnp.asarray(rotated(rng, spectra), dtype)
        found = mapped(linalg.largest_eigenvalue)(matrices)
    assert found.dtype == dtype
    ratio = double(found) / spectra.max(axis=1)
    rounding = (8 * m + 40) * np.finfo(dtype).eps  # 40: logarithms of the scales
    assert np.all(ratio >= 1 - rounding), ratio.min()
    assert np.all(ratio <= 1.01 + rounding), ratio.max()
    assert ratio.max() > 1.005 or m < 3  # the bound is as tight as it says, not more
    assert linalg.largest_eigenvalue(jnp.zeros((m, m))) == 0.0


def test_scales_neither_overflow_nor_underflow():
    truth = np.array([[2.0, 1.0], [1.0, -3.0]])
    values = np.linalg.eigvalsh(truth)
    eigh, nearest = jax.jit(linalg.eigh), jax.jit(linalg.nearest_psd)
    largest_eigenvalue = jax.jit(linalg.largest_eigenvalue)
    for m in (2, 12):
        padded = scipy.linalg.block_diag(truth, np.zeros((m - 2, m - 2)))
        for scale in (1e-35, 1e-20, 1e20, 1e37):
            matrix = jnp.asarray(scale * padded, jnp.float32)
            found = eigh(matrix)[0]
            np.testing.assert_allclose(found[0], scale * values[0], rtol=1e-5)
            np.testing.assert_allclose(found[-1], scale * values[1], rtol=1e-5)
            positive = nearest(matrix)
            np.testing.assert_allclose(np.trace(positive), scale * values[1], rtol=1e-4)
            square = jnp.asarray(scale * np.abs(padded), jnp.float32)
            largest = largest_eigenvalue(square)
            np.testing.assert_allclose(largest, scale * 3.618, rtol=0.01)


# What is no positive definite matrix -------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 40, *slow(1, 5, 17)])
def test_what_is_not_positive_definite_is_nan_as_it_is_for_lapack(m):
    good = np.eye(m) + 0.1
    bad = [good - 2 * np.diag(np.eye(m)[m // 2]), np.zeros((m, m)), -good, good * np.nan]
    last = good.copy()
    last[-1, -1] = -1e-3
    matrices = jnp.asarray([good, *bad, last, good], jnp.float32)
    expected = [False, *[True] * 5, False]
    found = mapped(linalg.cholesky)(matrices)
    assert np.isnan(found).all(axis=(1, 2)).tolist() == expected
    assert np.isnan(found).any(axis=(1, 2)).tolist() == expected  # all of a matrix, or none
    assert np.isnan(jnp.linalg.cholesky(matrices)).any(axis=(1, 2)).tolist() == expected
    assert np.isnan(mapped(linalg.log_det)(found)).tolist() == expected
    solved = mapped(linalg.solve)(matrices, jnp.ones((len(matrices), m)))
    assert np.isnan(solved).any(axis=1).tolist() == expected


@pytest.mark.parametrize("function", [linalg.eigh, linalg.nearest_psd])
@pytest.mark.parametrize("m", [2, 12, *slow(5)])
def test_what_is_not_finite_ends_and_gives_nan(function, m):
    for value in (np.nan, np.inf):
        matrices = jnp.stack([jnp.eye(m).at[0, 1].set(value), jnp.eye(m)])
        for found in jax.tree.leaves(mapped(function)(matrices)):
            assert np.isnan(found[0]).any()
            assert np.isfinite(found[1]).all()


# Derivatives -------------------------------------------------------------------------------------


def weighted(values):
    """A scalar that depends on all of the values, each in its own way."""
    return sum(
        jnp.sum(jnp.sin(x) * (1 + jnp.arange(x.size).reshape(x.shape) / x.size))
        for x in jax.tree.leaves(values)
    )


def symmetrised(function):
    return lambda matrix, *args: function((matrix + matrix.T) / 2, *args)


def absolute(pair):
    """Eigenvectors have a sign of their own."""
    return pair[0], pair[1] ** 2


PAIRS = {
    "cholesky": (linalg.cholesky, jnp.linalg.cholesky),
    "log_det": (
        lambda matrix: linalg.log_det(linalg.cholesky(matrix)),
        lambda matrix: symmetrised(jnp.linalg.slogdet)(matrix)[1],
    ),
    "cholesky_solve": (
        lambda matrix, b: linalg.cholesky_solve(linalg.cholesky(matrix), b),
        symmetrised(jnp.linalg.solve),
    ),
    "solve": (linalg.solve, jnp.linalg.solve),
    "solve_triangular": (
        linalg.solve_triangular,
        partial(jax.scipy.linalg.solve_triangular, lower=True),
    ),
    "solve_triangular, transposed": (
        partial(linalg.solve_triangular, transpose=True),
        partial(jax.scipy.linalg.solve_triangular, lower=True, trans=1),
    ),
    "eigh": (
        lambda matrix: absolute(linalg.eigh(matrix)),
        lambda matrix: absolute(jnp.linalg.eigh(matrix)),
    ),
    "nearest_psd": (
        lambda matrix: linalg.nearest_psd(matrix - 0.5 * jnp.trace(matrix) / len(matrix)),
        lambda matrix: positive_part(matrix - 0.5 * jnp.trace(matrix) / len(matrix)),
    ),
}


def positive_part(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)) @ vectors.T


@pytest.mark.parametrize("m", [3, *slow(1, 9)])
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_are_those_of_lapack(name, m, x64):
    here, lapack = PAIRS[name]
    rng = np.random.default_rng(m)
    matrices = jnp.asarray(rotated(rng, np.tile(np.linspace(1.0, 3.0, m), (4, 1))))
    arguments = (matrices,)
    if "solve" in name:
        arguments += (jnp.asarray(rng.normal(size=(4, m, 2))),)

    def scalar(function):
        return lambda *args: weighted(function(*args))

    places = tuple(range(len(arguments)))
    found = mapped(jax.grad(scalar(here), places))(*arguments)
    truth = mapped(jax.grad(scalar(lapack), places))(*arguments)
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())

    tangents = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in arguments)
    push = jax.jit(lambda function, *args: jax.jvp(jax.vmap(function), *args)[1], static_argnums=0)
    pushed, expected = (push(function, arguments, tangents) for function in (here, lapack))
    for one, other in zip(*map(jax.tree.leaves, (pushed, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PAIRS, "largest_eigenvalue"])
def test_second_derivatives(name, x64):
    here = linalg.largest_eigenvalue if name == "largest_eigenvalue" else PAIRS[name][0]
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rotated(rng, np.linspace(1.0, 3.0, 5)[None])[0])
    arguments = (matrix, jnp.asarray(rng.normal(size=5)))[: 2 if "solve" in name else 1]

    @jax.jit
    def along_symmetric(matrix, *args):
        return here((matrix + matrix.T) / 2, *args)

    check_grads(along_symmetric, arguments, order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("m", [2, 9])
def test_derivatives_at_equal_eigenvalues(m, x64):
    """What does not depend on the choice of vectors has its derivative there too."""
    rng = np.random.default_rng(m)
    change = jnp.asarray(rng.normal(size=(m, m)))
    even = (change + change.T) / 2
    for matrix, truth in [(2 * jnp.eye(m), even), (-2 * jnp.eye(m), 0 * even)]:
        _, found = jax.jit(partial(jax.jvp, linalg.nearest_psd))((matrix,), (change,))
        np.testing.assert_allclose(found, truth, atol=1e-12)
    squares = jax.jit(jax.grad(lambda matrix: jnp.sum(linalg.eigh(matrix)[0] ** 2)))
    gradient = squares(2 * jnp.eye(m))
    np.testing.assert_allclose(gradient, 4 * jnp.eye(m), atol=1e-12)
    weights = jax.jit(jax.grad(lambda matrix: weighted(linalg.eigh(matrix))))(2 * jnp.eye(m))
    assert np.isfinite(weights).all()
    slope = jax.jit(jax.grad(linalg.largest_eigenvalue))
    for matrix in (jnp.eye(m), jnp.zeros((m, m))):
        assert np.isfinite(slope(matrix)).all()


# Shapes, maps and what compiles ------------------------------------------------------------------

FUNCTIONS = {
    "cholesky": lambda a, b: linalg.cholesky(a),
    "solve_triangular": linalg.solve_triangular,
    "transposed": lambda a, b: linalg.solve_triangular(a, b, transpose=True),
    "cholesky_solve": linalg.cholesky_solve,
    "log_det": lambda a, b: linalg.log_det(a),
    "solve": linalg.solve,
    "largest_eigenvalue": lambda a, b: linalg.largest_eigenvalue(a),
    "eigh": lambda a, b: linalg.eigh(a),
    "nearest_psd": lambda a, b: linalg.nearest_psd(a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_matrices_of_no_rows_and_of_one(name):
    function = jax.jit(FUNCTIONS[name])
    for columns in ((), (0,), (2,)):
        for found in jax.tree.leaves(function(jnp.zeros((0, 0)), jnp.zeros((0, *columns)))):
            np.testing.assert_array_equal(found, jnp.zeros_like(found))
        two = jnp.full((1, 1), 4.0)
        found = jax.tree.leaves(function(two, jnp.ones((1, *columns))))
        truth = {
            "cholesky": [2.0],
            "solve_triangular": [0.25],
            "transposed": [0.25],
            "cholesky_solve": [1 / 16],
            "log_det": [2 * np.log(4)],
            "solve": [0.25],
            "eigh": [4.0, 1.0],
        }.get(name, [4.0])
        for one, other in zip(found, truth, strict=True):
            np.testing.assert_allclose(one, jnp.full_like(one, other), rtol=1e-6)


@pytest.mark.parametrize("m", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_maps_agree_with_single_calls(name, m):
    """Mapped once, twice, over one argument alone, and within a scan."""
    function = FUNCTIONS[name]
    rng = np.random.default_rng(m)
    a = jnp.asarray(covariances(m, 10.0, num=6), jnp.float32).reshape(2, 3, m, m)
    b = jnp.asarray(rng.normal(size=(2, 3, m)), jnp.float32)
    single = jax.jit(function)

    def agree(found, truth):
        for one, other in zip(*map(jax.tree.leaves, (found, truth)), strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, atol=30 * FLOAT32.eps * m * scale)

    twice = jax.jit(jax.vmap(jax.vmap(function)))(a, b)
    _, scanned = jax.lax.scan(lambda _, x: (None, mapped(function)(*x)), None, (a, b))
    for i in range(2):
        for j in range(3):
            pick = partial(jax.tree.map, lambda x, i=i, j=j: x[i, j])
            agree(pick(twice), single(a[i, j], b[i, j]))
            agree(pick(scanned), single(a[i, j], b[i, j]))
    one_matrix = mapped(function, (None, 0))(a[0, 0], b[0])
    one_vector = mapped(function, (0, None))(a[0], b[0, 0])
    for j in range(3):
        pick = partial(jax.tree.map, lambda x, j=j: x[j])
        agree(pick(one_matrix), single(a[0, 0], b[0, j]))
        agree(pick(one_vector), single(a[0, j], b[0, 0]))


def test_a_matrix_is_factorised_as_it_is_alone():
    """What else is in the batch, NaN too, changes no digit."""
    matrices = jnp.asarray(symmetric_matrices(7), jnp.float32)
    beside = matrices.at[1:].set(jnp.nan)
    for function in (linalg.cholesky, linalg.eigh, linalg.nearest_psd):
        one, other = (jax.jit(jax.vmap(function))(x) for x in (matrices, beside))
        for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            np.testing.assert_array_equal(x[0], y[0])


@pytest.mark.parametrize(
    ("m", "dtype"), [(2, np.float32), pytest.param(33, np.float64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_leaves_xla(name, m, dtype):
    """Neither the value nor the gradient, mapped over a batch within a loop."""
    function = FUNCTIONS[name]

    def program(a, b):
        def step(total, _):
            value, slopes = jax.vmap(jax.value_and_grad(lambda *x: weighted(function(*x)), (0, 1)))(
                a + total, b
            )
            return jnp.sum(value) + sum(jnp.sum(slope) for slope in slopes), None

        return jax.lax.scan(step, jnp.zeros((), dtype), length=2)[0]

    with in_x64(dtype):
        shapes = jnp.ones((5, m, m), dtype), jnp.ones((5, m), dtype)
        text = hlo.compiled_text(program, *shapes)
    assert hlo.custom_calls(text) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_larger_matrix_is_no_longer_program(name):
    """Nothing is written out row by row, which would take seconds to compile."""

    def length(m):
        text = hlo.compiled_text(jax.vmap(FUNCTIONS[name]), jnp.ones((5, m, m)), jnp.ones((5, m)))
        return text.count("\n")

    assert length(32) < 2.5 * length(9)
