"""Figure 1 of the paper: 40 steps that turn a swiss roll into noise, and noise into a swiss roll.

The roll is a curve without width. What a bound on its density can reach is set by the first noise
level, which is fixed (beta_1 = 1e-5), and how much of that 40 Gaussian steps do reach by where the
other levels lie: they are learned with the network. Beside that fit stand the same network on a
fixed schedule, and the best kernels there are on the learned one.

    python examples/swiss_roll.py            about three minutes on two cores
    python examples/swiss_roll.py --tiny     half a minute, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffppl as dp

T, BETA_1 = 40, 1e-5
LOW, HIGH = 1.5 * np.pi, 4.5 * np.pi  # the roll's angles: one and a half turns
GRID = np.linspace(LOW, HIGH, 100_001)


def curve(angle):
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=-1)


CENTRE = curve(GRID).mean(axis=0)
SCALE = np.sqrt(np.mean((curve(GRID) - CENTRE) ** 2))


def roll(angle):
    """Points of the roll, centred; one scale brings their second moment to 1."""
    return (curve(angle) - CENTRE) / SCALE


def ceiling() -> float:
    """-H(X_1) in bits: that of a place along the curve, and that of the noise across it."""
    speed = np.sqrt((1 - BETA_1) * (1 + GRID**2)) / SCALE
    return -np.mean(np.log2((HIGH - LOW) * speed)) - 0.5 * np.log2(2 * np.pi * np.e * BETA_1)


def define(schedule, network, prediction=None) -> dp.DiffusionModel:
    process, scaling = dp.GaussianDiffusion(schedule), dp.Scaling()  # the data are scaled already
    return dp.DiffusionModel(process, network, (2,), prediction=prediction, scaling=scaling)


def fit(schedule, data, num_iterations: int) -> dp.FitResult:
    # Sines and cosines of x: without them, detail this fine takes a network very long to learn.
    network = dp.networks.MLP(
        (2,), 64, 2, output_shape=(2, 2), fourier_features=64, key=jax.random.key(0)
    )
    return dp.fit(
        jax.random.key(1),
        define(schedule, network, dp.predictions.Velocity(dp.predictions.LearnedVariance())),
        data,
        num_iterations=num_iterations,
        batch_size=64,
        loss=dp.losses.ELBOLoss(dp.AllSteps()),
        optimizer=dp.default_optimizer(num_iterations, learning_rate=1e-2),
    )


def best(schedule) -> dp.DiffusionModel:
    """Exact means and variances of x_0 given x_t, for 4,000 points that are as good as a curve."""
    points = roll(np.linspace(LOW, HIGH, 4_000))
    network = dp.networks.GaussianMixtureDenoiser(
        schedule, np.full(4_000, 1 / 4_000), points, covariances=0.0, gives_variance=True
    )
    return define(schedule, network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    iterations, num_test, num_paired = (20, 500, 20) if args.tiny else (3_000, 50_000, 2_000)

    rng = np.random.default_rng(0)
    data, test = roll(rng.uniform(LOW, HIGH, 100_000)), roll(rng.uniform(LOW, HIGH, num_test))
    result = fit(dp.schedules.Learned(T, BETA_1, noise_to_signal=8.0), data, iterations)
    fixed = fit(dp.schedules.Reciprocal(T), data, iterations)
    model, schedule = result.model, result.model.process.schedule
    bound = dp.elbo(jax.random.key(2), model, test)
    fixed_bound = dp.elbo(jax.random.key(2), fixed.model, test)
    # With the same key, hence the same noise, a difference is known far better than its parts.
    pair = [dp.elbo(jax.random.key(3), m, test[:num_paired]) for m in (model, best(schedule))]
    gain = np.asarray(pair[1].per_example - pair[0].per_example) / np.log(2)

    null = -np.log2(2 * np.pi * np.e)  # mean log-density of N(0, I) at unit second moment
    error, gain_error = bound.standard_error / np.log(2), gain.std() / len(gain) ** 0.5
    print(f"\nbits per point\n{'-' * 52}")
    print(f"learned schedule, a lower bound K {bound.bits:8.3f} ± {error:.3f}")
    print(f"the best kernels on it would gain {gain.mean():8.3f} ± {gain_error:.3f}")
    print(f"ceiling of all kernels, -H(X_1)   {ceiling():8.3f}")
    print(f"schedule 1 / (T - t + 1)          {fixed_bound.bits:8.3f}")
    print(f"null model, N(0, I)               {null:8.3f}")
    print(f"K - L_null                        {bound.bits - null:8.3f}")
    print("the paper (beta_1 not stated): K = 2.35, K - L_null = 6.45")

    draw(result, bound, roll(rng.uniform(LOW, HIGH, 3_000))).savefig(
        args.output / "swiss_roll.png", dpi=120
    )
    print(f"wrote {args.output / 'swiss_roll.png'}")


def draw(result: dp.FitResult, bound: dp.Bound, data: np.ndarray) -> plt.Figure:
    """Three rows as in the paper, and how the fit went."""
    model, schedule = result.model, result.model.process.schedule
    figure, axes = plt.subplots(3, 4, figsize=(13, 9), layout="constrained")
    times, x_0 = (0, T // 2, T), jnp.asarray(data, dtype=float)
    noisy = {t: model.process.marginal(x_0, t).sample(jax.random.key(t)) for t in times[1:]}
    dp.plots.chain({0: x_0, **noisy}, label="forward", limit=3, axes=axes[0, :3])
    path = dp.sample_path(jax.random.key(4), model, (3_000,))  # x_T, .., x_0
    dp.plots.chain({t: path[T - t] for t in times}, label="reverse", limit=3, axes=axes[1, :3])

    grid = np.linspace(-2.7, 2.7, 19)
    x = jnp.asarray(np.stack(np.meshgrid(grid, grid), axis=-1), dtype=float)
    for axis, t in zip(axes[2], (2, T // 2, T), strict=False):
        drift = model.reverse_kernel(x, t).mean - x  # f_mu(x_t, t) - x_t
        axis.quiver(*x.reshape(-1, 2).T, *drift.reshape(-1, 2).T, color="#2f4b7c")
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"t = {t}")
    axes[2, 0].set_ylabel("drift of a reverse step")

    before = dp.schedules.Learned(T, BETA_1, noise_to_signal=8.0)
    names = {"learned": schedule, "at first": before, "1 / (T-t+1)": dp.schedules.Reciprocal(T)}
    dp.plots.schedule(names, ax=axes[0, 3])
    dp.plots.bound_terms(bound, ax=axes[1, 3])
    result.history.plot(ax=axes[2, 3])
    return figure


if __name__ == "__main__":
    main()
