"""Check that an optimiser still updates its parameters at the remaining iterations.

With a learning rate that has decayed to zero, the loss is noisy and flat and no error is raised.
This happens if a finished run is resumed with the same optimiser, or if a schedule is shorter than
the fit. The norm of the updates is therefore computed before training, with small arrays of ones in
place of parameters and gradients. The counters of an optimiser are the integers in its state; they
are extrapolated linearly from their first increments.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

FEW_STEPS = 64  # more than the number of minibatches that an optimiser accumulates per update
MIN_CHANGE = 1e-5  # relative to the largest update
SHARE = 0.01  # of a run: not checked at its end, where the rate of its own schedule is small


def check_updates(
    optimizer: optax.GradientTransformation, params: PyTree, done: int, num_iterations: int
) -> None:
    """Raise if an optimiser makes no updates in the second half of the iterations after `done`.

    Raises:
        ValueError: all updates there are smaller than 1e-5 times the largest one.
    """
    if num_iterations - done <= SHARE * num_iterations:
        return
    half = done + (num_iterations - done) // 2
    before = np.linspace(0, half, 9).astype(int)[:-1]
    after = np.linspace(half, num_iterations - 1, 5).astype(int)
    ones = jax.tree.map(lambda leaf: np.ones((1,) * leaf.ndim, leaf.dtype), params)
    try:
        norms = step_lengths(optimizer, ones, jnp.asarray(np.append(before, after), jnp.int32))
    except Exception:  # optimisers that depend on the shapes or values of parameters
        return
    norms = np.asarray(norms)
    largest = np.max(norms, where=np.isfinite(norms), initial=0.0)
    if np.all(norms[before.size :] < MIN_CHANGE * largest):
        raise ValueError(
            f"optimizer would make no steps in iterations {half} to {num_iterations}, and possibly "
            "before: its learning rate has decayed to zero by then. Pass one whose schedule is as "
            f"long as num_iterations={num_iterations}, including those already done, such as "
            f"default_optimizer({num_iterations}) where it was a default_optimizer."
        )


@eqx.filter_jit
def step_lengths(
    optimizer: optax.GradientTransformation, ones: PyTree, iterations: Int[Array, " points"]
) -> Float[Array, " points"]:
    """Return the largest norm of the next `FEW_STEPS` updates at each iteration, gradients of 1."""
    transform = optax.with_extra_args_support(optimizer)

    def loss(params: PyTree) -> Array:
        return sum(map(jnp.sum, jax.tree.leaves(params)), jnp.zeros(()))

    def step(state: PyTree, _: None) -> tuple[PyTree, Array]:
        # For line searches: a loss whose gradient is 1.
        extra = {"value": loss(ones), "grad": ones, "value_fn": loss}
        updates, state = transform.update(ones, state, ones, **extra)
        return state, optax.tree.norm(updates)

    start = transform.init(ones)
    later, _ = jax.lax.scan(step, start, length=FEW_STEPS)

    def largest_norm(iteration: Array) -> Array:
        def extrapolate(first: PyTree, last: PyTree) -> PyTree:
            is_counter = eqx.is_array(first) and jnp.issubdtype(first.dtype, jnp.integer)
            slope = (last - first) / FEW_STEPS if is_counter else 0
            return (first + slope * iteration).astype(first.dtype) if is_counter else first

        _, norms = jax.lax.scan(step, jax.tree.map(extrapolate, start, later), length=FEW_STEPS)
        return jnp.max(norms)

    return jax.lax.map(largest_norm, iterations)
