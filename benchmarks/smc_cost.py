"""Cost of twisted SMC relative to ancestral sampling of the same number of particles.

Both evaluate the same network at the same levels, compiled, with alternating timings. The output is
the ratio of their times.

    python benchmarks/smc_cost.py            about two minutes
    python benchmarks/smc_cost.py --tiny     to see that it runs
"""

import argparse
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import diffppl as dp


def seconds(run: Callable[[int], None]) -> float:
    start = time.perf_counter()
    run(1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    width, steps, particles, repeats = (16, 5, 20, 1) if args.tiny else (256, 100, 1_000, 7)

    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.log_snr_linear(steps)),
        network=dp.networks.MLP(event_shape=(8, 8), width=width, key=jax.random.key(0)),
        event_shape=(8, 8),
    )

    def program(y=None):
        x = numpyro.sample("x", model())
        numpyro.sample("y", dist.Normal(x[:4], 1.0).to_event(2), obs=y)

    y = jnp.zeros((4, 8))

    def ancestral(seed: int) -> None:
        jax.block_until_ready(dp.sample(jax.random.key(seed), model, (particles,)))

    def smc(twist: dp.twists.AbstractTwist) -> Callable[[int], None]:
        posterior = dp.Posterior(
            program, dp.TwistedSMC(particles, twist=twist), num_chains=1, progress_bar=False
        )
        return lambda seed: posterior.run(jax.random.key(seed), y=y)

    runs = {
        "ancestral": ancestral,
        "TwistedSMC, PointEstimate": smc(dp.twists.PointEstimate()),
        "TwistedSMC, MomentMatching": smc(dp.twists.MomentMatching()),
    }
    for run in runs.values():
        run(0)  # compilation
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    lines = [f"{particles} particles, {steps} steps, MLP of width {width}, 8x8 events"]
    base = np.array(times["ancestral"])
    for name, each in times.items():
        ratio = np.array(each) / base
        lines.append(
            f"{name:28s} {np.median(each):7.2f} s   {np.median(ratio):5.2f} times ancestral "
            f"({ratio.min():.2f} to {ratio.max():.2f})"
        )
    print("\n".join(lines))
    (args.output / "smc_cost.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
