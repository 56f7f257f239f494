"""Fit a prior to handwritten digits, and use it in a NumPyro program.

A diffusion model is fitted to the 8x8 digits of scikit-learn and compared with classical density
models on held-out digits. It is then the prior in a program that observes the top half of a
held-out digit with noise of unknown standard deviation; the posterior is that of the whole digit
and of the noise level.

    python examples/quickstart.py            about two minutes on two cores
    python examples/quickstart.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

import diffppl as dp

NOISE = 2.0  # standard deviation of the observations, in grey levels (a pixel has 17); inferred
COPIES = 10  # of each training digit, with independent dequantisation noise


def load() -> tuple[np.ndarray, np.ndarray]:
    """Return dequantised training and test digits: grey levels plus uniform noise."""
    rng = np.random.default_rng(0)
    images = rng.permutation(load_digits().images)
    train, test = np.tile(images[:1500], (COPIES, 1, 1)), images[1500:]
    return train + rng.uniform(size=train.shape), test + rng.uniform(size=test.shape)


def baselines(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Return the mean held-out log-density of three classical models, in nats per image."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    mixture = GaussianMixture(50, covariance_type="diag", reg_covar=1e-2, random_state=0)
    return {
        "probabilistic PCA, 40 directions": PCA(n_components=40).fit(train).score(test),
        "Gaussian, full covariance": PCA().fit(train).score(test),
        "mixture of 50 Gaussians": mixture.fit(train).score(test),
    }


def define(num_steps: int, width: int) -> dp.DiffusionModel:
    """Define a model with a learned noise schedule and a dense network."""
    return dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.Learned(num_steps, beta_1=3e-4)),
        network=dp.networks.MLP(event_shape=(8, 8), width=width, key=jax.random.key(0)),
        event_shape=(8, 8),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    iterations, particles, chains = (20, 50, 2) if args.tiny else (3_000, 500, 4)

    # Fit a prior, and compare it with other models on held-out digits.
    train, test = load()
    result = dp.fit(
        jax.random.key(1),
        define(num_steps=20 if args.tiny else 100, width=32 if args.tiny else 256),
        train,
        num_iterations=iterations,
        batch_size=256,
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
        validation_data=test,
    )
    model = result.model
    bound = dp.elbo(jax.random.key(2), model, test)
    scores = baselines(train[:3_000] if args.tiny else train, test)
    print(f"\nheld-out digits, nats per image (bits per dimension)\n{'-' * 60}")
    for name, nats in {**scores, "diffusion model, a lower bound": float(bound.value)}.items():
        print(f"{name:34} {nats:8.1f}  ({-nats / 64 / np.log(2):.3f})")
    print(f"standard error of the bound: {bound.standard_error:.1f} nats\n")
    digits = dp.sample(jax.random.key(3), model, (24,))
    path = args.output / ("digits-tiny.dppl" if args.tiny else "digits.dppl")
    dp.save(path, model)

    # Condition it on noisy observations of the top half of a digit, with unknown noise level.
    def program(y=None):
        x = numpyro.sample("x", model())
        sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
        numpyro.deterministic("ink", x[4:].mean())
        numpyro.sample("y", dist.Normal(x[:4], sigma).to_event(2), obs=y)

    truth = test[3]
    y = truth[:4] + NOISE * np.random.default_rng(1).normal(size=(4, 8))
    posterior = dp.Posterior(program, dp.TwistedSMC(particles), num_chains=chains)
    posterior.run(jax.random.key(4), y=jnp.asarray(y))
    idata = posterior.to_arviz(dims={"x": ["row", "column"], "y": ["row_seen", "column"]})
    print(az.summary(idata, var_names=["ink", "sigma"]))
    print(f"true values: ink in the hidden half {truth[4:].mean():.2f}, sigma {NOISE}")
    posterior.print_summary()

    samples = {name: np.asarray(x) for name, x in posterior.get_samples().items()}
    figure = draw(result, scores, float(bound.value), digits, truth, y, samples)
    figure.savefig(args.output / "quickstart.png", dpi=120)
    print(f"wrote {args.output / 'quickstart.png'} and {path}")


def draw(result, scores, bound, digits, truth, y, samples):
    """Plot the fit, the held-out log-densities, prior draws, and the posterior."""
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[3, 2, 4])

    left, right = top.subplots(1, 2)
    dp.plots.history(result.history, ax=left)
    names = [*scores, "diffusion model (bound)"]
    values = [*scores.values(), bound]
    floor = min(values) - 5
    lengths = [value - floor for value in values]
    right.barh(names, lengths, left=floor, color=["0.7"] * len(scores) + ["C0"])
    right.bar_label(right.containers[0], [f"{value:.1f}" for value in values], padding=3)
    right.set(
        xlim=(floor, max(values) + 6), title="Held-out digits, nats per image: more is better"
    )

    middle.suptitle("New digits, drawn from the prior")
    for axis, image in zip(middle.subplots(2, 12).flat, digits, strict=True):
        show(axis, image)

    bottom.suptitle("The top half of a held-out digit is seen through noise of unknown size")
    axes, x = bottom.subplots(2, 7), samples["x"]
    seen = np.full((8, 8), np.nan)
    seen[:4] = y
    panels = [("truth", truth), ("seen", seen), ("mean", x.mean(0))]
    for axis, (title, image) in zip(axes[:, :2].T.flat, panels, strict=False):
        show(axis, image, title)
    spread = axes[1, 1].imshow(x.std(0), cmap="magma", vmin=0)
    axes[1, 1].set_title("standard deviation", fontsize=9)
    axes[1, 1].set(xticks=[], yticks=[])
    bottom.colorbar(spread, ax=axes[1, 1], shrink=0.7)
    chosen = np.random.default_rng(2).choice(len(x), 9, replace=False)
    for axis, image in zip(axes[:, 2:].flat, x[chosen], strict=False):
        show(axis, image, "posterior draw")
    axes[1, 6].hist(samples["sigma"], bins=30, color="C0")
    axes[1, 6].axvline(NOISE, color="C3")
    axes[1, 6].set_title("sigma (line: truth)", fontsize=9)
    axes[1, 6].set(yticks=[])
    return figure


def show(axis, image, title=""):
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=17)
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[], facecolor="#cfe3f5")


if __name__ == "__main__":
    main()
