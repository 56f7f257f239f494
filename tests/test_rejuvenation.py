"""Metropolis moves leave their target invariant, whatever the number of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import polygamma

from diffppl.conditioning.rejuvenation import metropolis

from . import statistics
from .marks import slow

CLOUDS, SHAPE = 20_000, jnp.array([2.0, 0.7])


def log_density(u, first):
    """The logarithms of independent gamma variables: skew, and unlike each other."""
    del first
    return jnp.sum(SHAPE * u - jnp.exp(u), axis=-1)


@pytest.mark.parametrize("weights", ["equal", "unequal", "collapsed"])
@pytest.mark.parametrize("num_particles", [2, *slow(3, 4, 7)])
def test_the_target_is_invariant(num_particles: int, weights: str) -> None:
    log_weights = {
        "equal": np.zeros(num_particles),
        "unequal": np.log(np.arange(1.0, num_particles + 1)),
        "collapsed": np.where(np.arange(num_particles) == 0, 0.0, -np.inf),
    }[weights]
    log_weights = jax.nn.log_softmax(jnp.asarray(log_weights))

    def cloud(key):
        key_start, key_moves = jax.random.split(key)
        u = jax.random.loggamma(key_start, SHAPE, (num_particles, 2))
        start = (u, log_density(u, 0))
        keys = jax.random.split(key_moves, 10)
        moved, accepted = metropolis(keys, start, log_density, log_weights, jnp.ones(2))
        return moved, accepted

    moved, accepted = jax.jit(jax.vmap(cloud))(jax.random.split(jax.random.key(1), CLOUDS))
    assert jnp.mean(accepted) > 0.1
    mean, variance = polygamma(0, SHAPE), polygamma(1, SHAPE)
    centred = np.asarray(moved, np.float64) - mean
    for power, truth in [(1, np.zeros(2)), (2, variance), (3, polygamma(2, SHAPE))]:
        of_clouds = np.mean(centred**power, axis=1)
        error = of_clouds.std(axis=0) / np.sqrt(CLOUDS)
        statistics.assert_within_standard_errors(of_clouds.mean(axis=0), truth, error)
