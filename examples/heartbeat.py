"""Figure 2 of the paper: binary sequences with a 1 in every fifth bin, and a chain of 2,000 steps.

There are five such sequences of length 20, equally probable, so exact values are available:
log2 p = log2(1/5) = -2.322 bits for a perfect model, and the bound of the optimal reverse kernels
of this chain, which the analytic denoiser `denoisers.Enumerated` attains.

The network is a time-dependent `MLP`: after 8,000 minibatches it is within 0.005 bits of the
optimum. The paper's `SigmoidMLP`, with a readout per step (`--paper`), converges more slowly: its
bound was 0.055 bits below the optimum after 15,000 minibatches; the bound reported in the paper is
0.046 bits below.

    python examples/heartbeat.py            about three minutes on two cores
    python examples/heartbeat.py --paper    with the network of the paper
    python examples/heartbeat.py --tiny     half a minute, to see that it runs
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import diffppl as dp

DATA = dp.data.heartbeats()


def define(process, network) -> dp.DiffusionModel:
    return dp.DiffusionModel(process, network, event_shape=(20,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--paper", action="store_true", help="the network of the paper")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    num_steps, iterations, repeats = (50, 100, 2) if args.tiny else (2_000, 8_000, 500)

    # The base has the mean of the data; every step resamples 1/T of the sequence.
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(num_steps), rate=0.2)
    key = jax.random.key(0)
    if args.paper:
        network = dp.networks.SigmoidMLP((20,), num_steps, key=key)
    else:
        network = dp.networks.MLP((20,), width=64, depth=2, key=key)
    result = dp.fit(
        jax.random.key(1),
        define(process, network),
        DATA,
        num_iterations=iterations,
        optimizer=dp.default_optimizer(iterations, learning_rate=1e-2),
    )
    model = result.model
    exact = define(process, dp.denoisers.Enumerated(process, DATA, np.full(5, 1 / 5)))

    # Bounds with common random numbers (the same key), which reduce the error of the difference.
    data = np.tile(DATA, (repeats, 1))
    bound, best = (dp.elbo(jax.random.key(2), each, data) for each in (model, exact))
    lost = np.asarray(best.per_example - bound.per_example) / np.log(2)
    null = 20 * (0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))
    # The likelihoods that they bound, from the weights of forward trajectories.
    works = [
        dp.jarzynski(jax.random.key(3), each, DATA, num_trajectories=2 * repeats)
        for each in (model, exact)
    ]
    samples = np.asarray(dp.sample(jax.random.key(4), model, (20 * repeats,)))
    valid = np.mean((samples[:, None] == DATA).all(axis=-1).any(axis=-1))

    def show(name: str, value: float, error: float) -> None:
        print(f"{name:46} {value:9.4f} ± {error:.4f}")

    print(f"\nbits per sequence\n{'-' * 66}")
    show("lower bound K", bound.bits, bound.standard_error / np.log(2))
    show("  of the best kernels", best.bits, best.standard_error / np.log(2))
    show("  lost by the network", lost.mean(), lost.std() / len(lost) ** 0.5)
    for name, work in zip(("log p by Jarzynski", "  of the best kernels"), works, strict=True):
        estimate = work.log_likelihood
        show(name, estimate.bits, estimate.monte_carlo_error / np.log(2))
    print(f"log2(1/5), a perfect model                     {-np.log2(5):9.4f}")
    print(f"null model, independent coins                  {null:9.4f}")
    print("the paper: K = -2.414")
    spread = np.sqrt(valid * (1 - valid) / len(samples))
    print(f"\n{len(samples):,} samples, of which valid: {100 * valid:.2f} ± {100 * spread:.2f} %")

    draw(result, bound).savefig(args.output / "heartbeat.png", dpi=120)
    print(f"wrote {args.output / 'heartbeat.png'}")


def draw(result: dp.FitResult, bound: dp.Estimate) -> plt.Figure:
    """Plot independent chains as rows at three times, aligned by the phase of their x_0."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.5), layout="constrained")
    model, num_steps, chains = result.model, result.model.num_steps, 60
    times = (0, num_steps // 2, num_steps)

    x_0 = np.random.default_rng(0).permutation(np.tile(DATA, (chains // 5, 1)))
    noisy = [model.process.marginal(x_0, t).sample(jax.random.key(t)) for t in times[1:]]
    path = np.asarray(dp.sample_path(jax.random.key(6), model, (chains,)))  # x_T, .., x_0
    rows = {"forward": [x_0, *noisy], "reverse": [path[num_steps - t] for t in times]}
    for axis_row, (name, panels) in zip(axes, rows.items(), strict=True):
        phases = panels[0].reshape(chains, 4, 5).sum(axis=1).argmax(axis=1)
        for axis, t, x in zip(axis_row, times, panels, strict=False):
            aligned = [np.roll(row, -phase) for row, phase in zip(x, phases, strict=True)]
            dp.plots.events(np.array(aligned), limits=(0, 1), ax=axis)
            axis.set(title=f"{name}, t = {t:,}", xlabel="bin", ylabel="", yticks=[])
        axis_row[0].set_ylabel("independent chains")
    dp.plots.bound_terms(bound, ax=axes[0, 3])
    dp.plots.history(result.history, ax=axes[1, 3])
    return figure


if __name__ == "__main__":
    main()
