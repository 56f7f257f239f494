"""Figure 1 of the paper: a swiss roll and a chain of 40 steps.

The data lie on a curve without noise, so the bound on their log-density is limited by the first
noise level, which is fixed (beta_1 = 1e-5). How close 40 Gaussian steps come to this limit depends
on the other levels, which are learned with the network. For comparison the same network is fitted
with a fixed schedule, and the optimal kernels are evaluated on the learned one.

    python examples/swiss_roll.py            about three minutes on two cores
    python examples/swiss_roll.py --paper    with the paper's network of 16 radial functions
    python examples/swiss_roll.py --tiny     half a minute, to see that it runs
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffppl as dp
from diffppl.data.toys import HIGH, LOW  # the roll's angles: one and a half turns

T, BETA_1 = 40, 1e-5
ROLL = dp.data.SwissRoll()  # centred, with a second moment of 1
GRID = np.linspace(LOW, HIGH, 100_001)


def roll(angle) -> np.ndarray:
    """Return points of the roll at given angles."""
    return np.asarray(ROLL.curve(angle), np.float64)


def ceiling() -> float:
    """Return -H(X_1) in bits, from the position along the curve and the noise across it."""
    speed = np.sqrt(1 - BETA_1) * np.linalg.norm(np.gradient(roll(GRID), GRID, axis=0), axis=1)
    return -np.mean(np.log2((HIGH - LOW) * speed)) - 0.5 * np.log2(2 * np.pi * np.e * BETA_1)


def define(schedule, network, prediction=None) -> dp.DiffusionModel:
    process, scaling = dp.GaussianDiffusion(schedule), dp.Scaling()  # the data have unit scale
    return dp.DiffusionModel(process, network, (2,), prediction=prediction, scaling=scaling)


def fit(schedule, num_iterations: int, *, paper: bool) -> dp.FitResult:
    key, key_fit = jax.random.split(jax.random.key(0))
    # Fourier features of x let a small network resolve the roll. With only 40 steps a variance that
    # depends on x_t, as in the paper, improves the bound by 0.3 bits.
    if paper:
        network = dp.networks.RBF((2,), T, output_shape=(2, 2), key=key)
    else:
        network = dp.networks.MLP((2,), 64, 2, output_shape=(2, 2), fourier_features=64, key=key)
    return dp.fit(
        key_fit,
        define(schedule, network, dp.predictions.Velocity(dp.predictions.LearnedVariance())),
        ROLL,
        num_iterations=num_iterations,
        batch_size=64,
        loss=dp.losses.ELBOLoss(dp.AllSteps()),
        optimizer=dp.default_optimizer(num_iterations, learning_rate=1e-2),
    )


def best(schedule) -> dp.DiffusionModel:
    """Return a model with the exact moments of x_0 | x_t, for the curve as 4,000 points."""
    points, weights = roll(np.linspace(LOW, HIGH, 4_000)), np.full(4_000, 1 / 4_000)
    exact = dp.denoisers.GaussianMixture(schedule, weights, points, 0)
    return define(schedule, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--paper", action="store_true", help="the network of the paper")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    iterations, num_test, num_paired = (20, 500, 20) if args.tiny else (3_000, 50_000, 2_000)

    test, _ = ROLL.batch(jax.random.key(1), num_test)
    result = fit(dp.schedules.Learned(T, BETA_1, noise_to_signal=8.0), iterations, paper=args.paper)
    fixed = fit(dp.schedules.reciprocal(T), iterations, paper=args.paper).model
    model, schedule = result.model, result.model.process.schedule
    bound, other = (dp.elbo(jax.random.key(2), each, test) for each in (model, fixed))
    # Common random numbers (the same key) reduce the error of the difference.
    pair = [dp.elbo(jax.random.key(3), m, test[:num_paired]) for m in (model, best(schedule))]
    gain = np.asarray(pair[1].per_example - pair[0].per_example) / np.log(2)

    null = -np.log2(2 * np.pi * np.e)  # mean log-density of N(0, I) at unit second moment
    error, gain_error = bound.standard_error / np.log(2), gain.std() / len(gain) ** 0.5
    print(f"\nbits per point\n{'-' * 52}")
    print(f"learned schedule, a lower bound K {bound.bits:8.3f} ± {error:.3f}")
    print(f"the best kernels on it would gain {gain.mean():8.3f} ± {gain_error:.3f}")
    print(f"ceiling of all kernels, -H(X_1)   {ceiling():8.3f}")
    print(f"schedule 1 / (T - t + 1)          {other.bits:8.3f}")
    print(f"null model, N(0, I)               {null:8.3f}; K - L_null = {bound.bits - null:.3f}")
    print("the paper, its beta_1 not stated     2.35; K - L_null = 6.45")
    draw(result, bound, test[:3_000]).savefig(args.output / "swiss_roll.png", dpi=120)
    print(f"wrote {args.output / 'swiss_roll.png'}")


def draw(result: dp.FitResult, bound: dp.Estimate, data: np.ndarray) -> plt.Figure:
    """Plot the three rows of the paper's figure, and diagnostics of the fit."""
    model, schedule = result.model, result.model.process.schedule
    figure, axes = plt.subplots(3, 4, figsize=(13, 9), layout="constrained")
    times, x_0 = (0, T // 2, T), jnp.asarray(data, dtype=float)
    noisy = {t: model.process.marginal(x_0, t).sample(jax.random.key(t)) for t in times[1:]}
    dp.plots.chain({0: x_0, **noisy}, label="forward", limit=2.5, axes=axes[0, :3])
    path = dp.sample_path(jax.random.key(4), model, (len(data),))  # x_T, .., x_0
    dp.plots.chain({t: path[T - t] for t in times}, label="reverse", limit=2.5, axes=axes[1, :3])

    x = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(-2.4, 2.4, 21)]), axis=-1).reshape(-1, 2)
    for axis, t in zip(axes[2], (2, T // 2, T), strict=False):  # the final step is fixed by beta_1
        drift = model.reverse_kernel(x, t).mean - x  # f_mu(x_t, t) - x_t
        axis.plot(*roll(GRID).T, color="#d1495b", alpha=0.4)
        axis.quiver(*x.T, *drift.T, color="#2f4b7c", width=0.005)
        axis.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", title=f"t = {t}")
    axes[2, 0].set_ylabel("drift of a reverse step")
    schedules = {"learned": schedule, "1 / (T-t+1)": dp.schedules.reciprocal(T)}
    dp.plots.schedule(schedules, ax=axes[0, 3])
    dp.plots.bound_terms(bound, ax=axes[1, 3])
    dp.plots.history(result.history, ax=axes[2, 3])
    return figure


if __name__ == "__main__":
    main()
