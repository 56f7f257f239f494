"""The reader of compiled programs, on programs with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from . import hlo

MATRICES = 2.0 * jnp.eye(3) + jnp.ones((5, 3, 3))
ROOT = jnp.linalg.cholesky


def loop(body, start):
    return lax.fori_loop(0, 3, lambda _, x: body(x), start)


def two_at_once(x):
    return ROOT(x), ROOT(2 * x)


def one_after_another(x):
    return ROOT(x + ROOT(x) @ ROOT(x).mT)


def one_in_a_loop(x):
    return loop(lambda x: x + ROOT(x), x)


def two_at_once_in_a_loop(x):
    return loop(lambda x: x + ROOT(x) * ROOT(x + 2), x)


def one_in_each_of_two_loops(x):
    return loop(lambda x: x + ROOT(x), x), loop(lambda x: x + ROOT(2 * x), x + 1)


def two_loops_in_turn(x):
    return loop(lambda x: x + ROOT(2 * x), loop(lambda x: x + ROOT(x), x))


def a_loop_beside_a_call(x):
    return loop(lambda x: x + ROOT(x), x), jnp.linalg.eigh(x)[0]


def one_in_each_branch(x):
    return lax.cond(x[0, 0, 0] > 0, ROOT, lambda x: jnp.linalg.eigh(x)[1], x)


def two_at_once_in_a_branch(x):
    return lax.cond(x[0, 0, 0] > 0, lambda x: ROOT(x) + ROOT(2 * x), lambda x: x, x)


def two_branches_at_once(x):
    return one_in_each_branch(x), one_in_each_branch(-x)


def two_transforms_at_once(x):
    return jnp.fft.fft(x), jnp.fft.fft(x.mT)


def a_transform_beside_a_call(x):
    return jnp.fft.fft(x), ROOT(x)


def a_barrier_between(x):
    """It is gone from what XLA compiles: no remedy."""
    first, x = lax.optimization_barrier((ROOT(x), x))
    return first, ROOT(2 * x)


def two_substitutions_at_once(x):
    root = ROOT(x)
    solve = lambda b: lax.linalg.triangular_solve(root, b, left_side=True, lower=True)
    return solve(x), solve(x @ x)


def a_solve(x):
    """LU, and two substitutions, one after another."""
    return jnp.linalg.solve(x, x + 1)


def only_others(x):
    """Calls that stay in XLA, and what looks like a call by its name."""
    return lax.top_k(x, 2)[0], lax.top_k(-x, 2)[0], jax.named_call(jnp.sin, name="lapack_fft")(x)


@pytest.mark.parametrize(
    ("function", "num_calls", "num_pairs"),
    [
        (two_at_once, 2, 1),
        (one_after_another, 2, 0),
        (one_in_a_loop, 1, 0),
        (two_at_once_in_a_loop, 2, 1),
        (one_in_each_of_two_loops, 2, 1),
        (two_loops_in_turn, 2, 0),
        (a_loop_beside_a_call, 2, 1),
        (one_in_each_branch, 2, 0),
        (two_at_once_in_a_branch, 2, 1),
        (two_branches_at_once, 4, 1),
        (two_transforms_at_once, 2, 1),
        (a_transform_beside_a_call, 2, 1),
        (a_barrier_between, 2, 1),
        (two_substitutions_at_once, 3, 1),
        (a_solve, 3, 0),
        (only_others, 0, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_calls_at_once_are_found(function, num_calls, num_pairs):
    text = hlo.compiled_text(function, MATRICES)
    outside = [target for target in hlo.custom_calls(text) if target != "TopK"]
    assert len(outside) == num_calls, outside
    pairs = hlo.lapack_calls_at_once(text)
    assert len(pairs) == num_pairs, pairs


def test_a_pair_says_where_it_is():
    (pair,) = hlo.lapack_calls_at_once(hlo.compiled_text(two_at_once_in_a_loop, MATRICES))
    assert "region" in pair.computation
    assert pair.first != pair.second


def test_what_is_not_a_program_is_refused():
    with pytest.raises(AssertionError, match="no ENTRY"):
        hlo.lapack_calls_at_once(str(np.zeros(3)))
