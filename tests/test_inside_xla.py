"""Programs whose factorisations stay inside XLA compute what they did."""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

from diffppl.conditioning.inside_xla import MAX_ROWS
from diffppl.conditioning.traced import Traced

from . import hlo
from .marks import quick_and_slow

RNG = np.random.default_rng(0)


def covariance(m: int, batch: tuple[int, ...] = ()) -> jax.Array:
    root = RNG.normal(size=(*batch, m, m + 3))
    return jnp.asarray(root @ root.swapaxes(-1, -2), float)


def solve(a, b, **settings):
    return jsl.solve_triangular(a, b, **settings)


def in_a_loop(a):
    return lax.scan(lambda x, _: (x + jnp.linalg.cholesky(x), None), a, length=3)[0]


def in_a_while_loop(a):
    def body(state):
        n, x = state
        return n + 1, x + jnp.linalg.cholesky(x)

    return lax.while_loop(lambda state: state[0] < 3, body, (0, a))[1]


def in_a_branch(a):
    return lax.cond(a[0, 0] > 0, jnp.linalg.cholesky, lambda a: a, a)


def in_a_checkpoint(a):
    return jax.checkpoint(lambda a: jnp.sum(jnp.linalg.cholesky(jnp.sin(a) + 9 * jnp.eye(4))))(a)


def normals(a):
    first = dist.MultivariateNormal(jnp.zeros(4), a).log_prob(jnp.arange(4.0))
    second = dist.MultivariateNormal(jnp.ones(4), precision_matrix=a).log_prob(jnp.arange(4.0))
    return first + second


def inverse(a):
    return jsl.cho_solve((jnp.linalg.cholesky(a), True), jnp.eye(4))


def mapped(a):
    return jax.vmap(lambda scale: jnp.linalg.cholesky(scale * a))(jnp.array([1.0, 2.0, 5.0]))


CASES = {
    "cholesky": jnp.linalg.cholesky,
    "upper": lambda a: jnp.linalg.cholesky(a, upper=True),
    "jit": jax.jit(lambda a: jnp.linalg.cholesky(a) + 1),
    "scan": in_a_loop,
    "cond": in_a_branch,
    "checkpoint": in_a_checkpoint,
    "normals": normals,
    "inverse": inverse,
    "mapped": mapped,
    "custom": jax.custom_jvp(lambda a: jnp.linalg.cholesky(a)),
    **{
        f"solve-{lower}-{trans}-{unit}": functools.partial(
            solve, b=jnp.arange(8.0).reshape(4, 2), lower=lower, trans=trans, unit_diagonal=unit
        )
        for lower in (True, False)
        for trans in (0, 1)
        for unit in (True, False)
    },
    "from-the-right": lambda a: lax.linalg.triangular_solve(a, jnp.ones((2, 4)), lower=True),
}
CASES["custom"].defjvps(lambda da, found, a: jnp.linalg.cholesky(a + da) - found)


QUICK = ["scan", "cond", "mapped", "solve-False-1-True", "from-the-right"]


@pytest.mark.parametrize("name", quick_and_slow([*CASES, "while"], QUICK))
def test_a_program_computes_what_it_did(name: str) -> None:
    function = CASES.get(name, in_a_while_loop)
    a = covariance(4)
    traced = Traced(function, a)
    np.testing.assert_allclose(traced(a), function(a), rtol=2e-4, atol=2e-5)
    text = hlo.compiled_text(lambda a: traced(a), a)
    assert hlo.custom_calls(text) == []
    assert hlo.custom_calls(hlo.compiled_text(lambda a: function(a), a)) != []
    if name in ("while", "custom"):  # without a reverse derivative
        return
    # Of entries up to 1, so that no solution is too large for a sine in float32.
    found, truth = (
        jax.jit(jax.grad(lambda a, f=f: jnp.sum(jnp.sin(f(a)))))(a / jnp.max(a))
        for f in (traced, function)
    )
    scale = float(jnp.max(jnp.abs(truth)))
    np.testing.assert_allclose(found, truth, rtol=1e-3, atol=1e-4 * scale)


def test_a_large_matrix_is_left_to_lapack() -> None:
    a = covariance(MAX_ROWS + 1)
    text = hlo.compiled_text(lambda a: Traced(jnp.linalg.cholesky, a)(a), a)
    assert len(hlo.custom_calls(text)) == 1


def test_traces_that_compute_the_same_are_equal() -> None:
    a = covariance(4)
    first, second = Traced(normals, a), Traced(normals, a)
    assert jax.tree.structure(first) == jax.tree.structure(second)
