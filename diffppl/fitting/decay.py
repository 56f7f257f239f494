"""Checks that an optimiser still updates its parameters at the iterations that are left.

A learning rate that has decayed to zero trains nothing, without any sign of it: the loss stays
noisy and flat. That happens where a finished run is resumed with the optimiser that it ended with,
and where a schedule is shorter than its fit. The length of the updates is therefore computed
beforehand, with small arrays of ones in place of parameters and gradients. The counters of an
optimiser are the whole numbers in its state; they are extrapolated from how fast they rise at
first.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

FEW_STEPS = 64  # more than the minibatches that an optimiser may accumulate before an update
MIN_CHANGE = 1e-5  # of the longest update
SHARE = 0.01  # of a run: the learning rate of a schedule that ends with it is small there


def check_moves(
    optimizer: optax.GradientTransformation, params: PyTree, done: int, num_iterations: int
) -> None:
    """Refuse an optimiser without updates in the second half of the iterations that are left.

    Args:
        optimizer: of the run.
        params: what it trains.
        done: iterations already done.
        num_iterations: how many there will be in all.

    Raises:
        ValueError: its steps will be less than a hundred-thousandth of what they were.
    """
    if num_iterations - done <= SHARE * num_iterations:
        return
    half = done + (num_iterations - done) // 2
    before = np.linspace(0, half, 9).astype(int)[:-1]
    after = np.linspace(half, num_iterations - 1, 5).astype(int)
    toys = jax.tree.map(lambda leaf: np.ones((1,) * leaf.ndim, leaf.dtype), params)
    try:
        lengths = step_lengths(optimizer, toys, jnp.asarray(np.append(before, after), jnp.int32))
    except Exception:  # some optimisers depend on the shapes or values of their parameters
        return
    lengths = np.asarray(lengths)
    most = np.max(lengths, where=np.isfinite(lengths), initial=0.0)
    if np.all(lengths[before.size :] < MIN_CHANGE * most):
        raise ValueError(
            f"optimizer would make no steps in iterations {half} to {num_iterations}, nor perhaps "
            "before: its learning rate has decayed to zero by then. Pass one whose schedule is as "
            f"long as num_iterations={num_iterations}, those already done included, such as "
            f"default_optimizer({num_iterations}) where it was a default_optimizer."
        )


@eqx.filter_jit
def step_lengths(
    optimizer: optax.GradientTransformation, ones: PyTree, iterations: Int[Array, " points"]
) -> Float[Array, " points"]:
    """The norm of the longest of a few steps, at each of some iterations, with a gradient of 1."""
    moving = optax.with_extra_args_support(optimizer)

    def total(params: PyTree) -> Array:
        return sum(map(jnp.sum, jax.tree.leaves(params)), jnp.zeros(()))

    def step(state: Any, _: None) -> tuple[Any, Array]:
        extra = {"value": total(ones), "grad": ones, "value_fn": total}
        updates, state = moving.update(ones, state, ones, **extra)
        return state, optax.tree.norm(updates)

    start = moving.init(ones)
    later, _ = jax.lax.scan(step, start, length=FEW_STEPS)

    def at(iteration: Array) -> Array:
        def count(first: Any, last: Any) -> Any:
            is_counter = eqx.is_array(first) and jnp.issubdtype(first.dtype, jnp.integer)
            rise = (last - first) / FEW_STEPS if is_counter else 0
            return (first + rise * iteration).astype(first.dtype) if is_counter else first

        _, lengths = jax.lax.scan(step, jax.tree.map(count, start, later), length=FEW_STEPS)
        return jnp.max(lengths)

    return jax.lax.map(at, iterations)
