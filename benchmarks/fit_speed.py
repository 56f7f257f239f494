"""Speed of `fit`: iterations per second, and the gain of many iterations per compiled call.

The same iterations are run in chunks of 100 per compiled call, as in `fit`, and with one compiled
call per iteration. Timings alternate, so that other load on the machine affects both.

    python benchmarks/fit_speed.py --dim 64 --width 256 --num-steps 100 --batch-size 256
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffppl as dp
from diffppl.fitting.prepare import trainable_mask
from diffppl.fitting.reverse_variance import with_initial_variance
from diffppl.fitting.training import TrainingConfig, initial_state, run_chunk


def main(dim: int, width: int, depth: int, num_steps: int, batch_size: int, rounds: int) -> None:
    """Measure both speeds and print them with their ratio."""
    key = jax.random.key(0)
    data = dp.data.InMemory(np.random.default_rng(0).standard_normal((10_000, dim)))
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.cosine(num_steps)),
        network=dp.networks.MLP((dim,), width, depth, key=key),
        event_shape=(dim,),
    )
    model = with_initial_variance(model)  # `fit` estimates the reverse variance during training
    params, frozen = eqx.partition(model, trainable_mask(model, None))
    config = TrainingConfig(
        frozen=frozen,
        loss=dp.losses.ELBOLoss(),
        optimizer=dp.default_optimizer(10_000),
        ema_decay=0.999,
        batch_size=batch_size,
    )
    start = initial_state(params, config)

    def chunks(length: int) -> float:
        """Return the seconds per iteration over 100 iterations, with one transfer per call."""
        state, begin = start, time.perf_counter()
        for stop in range(length, 101, length):
            state, losses, _ = run_chunk(key, state, config, data, jnp.asarray(stop), length)
            np.asarray(losses)
        return (time.perf_counter() - begin) / 100

    begin = time.perf_counter()
    chunks(100)
    print(f"first chunk, compilation included: {time.perf_counter() - begin:.1f} s")
    chunks(1)
    pairs = [(chunks(100), chunks(1)) for _ in range(rounds)]
    whole, single = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_array)))
    print(f"{size:,} parameters on {jax.devices()[0].device_kind}")
    print(f"chunks of 100: {1 / whole:8.1f} iterations/s")
    print(f"one per call:  {1 / single:8.1f} iterations/s")
    print(f"gain of chunks: {ratio:.2f} (median of {rounds} pairs)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="one round of a small network")
    parser.add_argument("--output", help="ignored; accepted as in the other scripts")
    settings = vars(parser.parse_args())
    settings.pop("output")
    if settings.pop("tiny"):
        settings |= {"dim": 4, "width": 16, "depth": 1, "rounds": 1}
    main(**settings)
