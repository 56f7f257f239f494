"""Class-conditional digits with classifier-free guidance, and classification by the evidence.

A network with an optional context is fitted with the class dropped at random, so that it models
both p(x | class) and p(x). Classifier-free guidance extrapolates from the latter beyond the former.
With large weights the network is evaluated outside its training distribution, so E[x_0 | x_t] is
clipped to the range of the grey levels. A classifier trained on real digits measures how often the
draws have the requested class, and the share of grey pixels how realistic they are. The same model
then classifies a digit of which half is observed, by the evidence of each class.

Expected result: guidance makes the digits more legible, and finally too black. At weight 0 they are
classified about as well as held-out digits; with any other weight the draws no longer follow the
data distribution.

    python examples/classes.py            about four minutes on two cores
    python examples/classes.py --tiny     seconds, to see that it runs
"""

import argparse
import pathlib
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import diffppl as dp

LEVELS = 17  # number of grey levels
WEIGHTS = (0.0, 1.0, 4.0)  # guidance weights
NOISE = 1.0  # standard deviation of the observations, in grey levels
CASES = (3, 8, 22)  # indices of the half-observed test digits


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and held-out digits with their classes, in a fixed random order."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order], digits.target[order]
    return images[:1_500], labels[:1_500], images[1_500:], labels[1_500:]


def one_hot(labels: np.ndarray) -> jax.Array:
    return jax.nn.one_hot(jnp.asarray(labels), 10)


def fit(images: np.ndarray, labels: np.ndarray, *, tiny: bool) -> dp.DiffusionModel:
    """Fit a model of dequantised grey levels, with the class dropped with probability 0.1."""
    width, iterations = (16, 20) if tiny else (256, 4_000)
    network = dp.networks.MLP((8, 8), width, context_shape=(11,), key=jax.random.key(0))
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(
            dp.schedules.log_snr_linear(20 if tiny else 100, noise_to_signal=(0.02, 60.0))
        ),
        network=dp.networks.OptionalContext(network, context_shape=(10,)),
        event_shape=(8, 8),
        context_shape=(10,),
    )
    source = dp.data.InMemory(images.astype(np.uint8), context=one_hot(labels))
    return dp.fit(
        jax.random.key(1),
        model,
        dp.data.Dequantised(source),
        loss=dp.losses.ContextDropout(dp.losses.ELBOLoss(), rate=0.1),
        num_iterations=iterations,
        batch_size=256,
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
    ).model


def grey(images: np.ndarray) -> float:
    """Return the share of the pixels that are neither white nor black."""
    return float(np.mean((images > 0) & (images < 16)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    each, particles = (6, 20) if args.tiny else (100, 300)
    images, labels, test, test_labels = load()
    model = fit(images, labels, tiny=args.tiny)

    # Draw every class at each weight.
    classifier = SVC(gamma=0.001).fit(images.reshape(-1, 64), labels)
    asked = np.tile(np.arange(10), each)
    right = classifier.score(test.reshape(-1, 64), test_labels)
    print(f"\n{'':24}class found    grey pixels")
    print(f"{'held-out digits':24}{right:11.1%}    {grey(test):11.1%}")
    drawn = {}
    for weight in WEIGHTS:
        guided = dp.clipped(dp.guided(model, weight), 0, LEVELS)
        x = dp.sample(jax.random.key(2), guided, (), context=one_hot(asked))
        x = drawn[weight] = np.clip(np.floor(np.asarray(x)), 0, LEVELS - 1)
        right = classifier.score(x.reshape(-1, 64), asked)
        print(f"{f'guided by {weight:g}':24}{right:11.1%}    {grey(x):11.1%}")

    # The evidence of each class, for the noisy upper half of a digit.
    def program(context, y=None):
        x = numpyro.sample("x", model(context))
        numpyro.sample("y", dist.Normal(x[:4], NOISE).to_event(2), obs=y)

    warnings.filterwarnings("ignore", "the particles collapsed")  # expected for wrong classes
    posterior = dp.Posterior(program, dp.TwistedSMC(particles), progress_bar=False)
    rng, rows = np.random.default_rng(0), []
    for case in CASES[: 1 if args.tiny else None]:
        y = jnp.asarray(test[case, :4] + rng.uniform(size=(4, 8)) + NOISE * rng.normal(size=(4, 8)))
        log_p = []
        for context in one_hot(np.arange(10)):
            posterior.run(jax.random.key(3), context, y=y)
            log_p.append(posterior.log_evidence.value)
        probs = np.exp(log_p - np.logaddexp.reduce(log_p))
        rows.append((test_labels[case], test[case], np.asarray(y), probs))
        best = np.argsort(probs)[::-1][:2]
        print(f"a {test_labels[case]}, seen by half: ", end="")
        print(", ".join(f"{digit} with probability {probs[digit]:.2f}" for digit in best))

    draw(drawn, rows).savefig(args.output / "classes.png", dpi=110)
    print(f"wrote {args.output / 'classes.png'}")


def draw(drawn, rows) -> plt.Figure:
    """Plot digits of each class at each weight, and the posterior of the class of half a digit."""
    figure = plt.figure(figsize=(11, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    for panel, (weight, x) in zip(top.subfigures(1, len(drawn)), drawn.items(), strict=True):
        panel.suptitle(f"guidance {weight:g}")
        for i, axis in enumerate(panel.subplots(10, 6).flat):
            show(axis, x[10 * (i % 6) + i // 6])  # one class per row
    axes = bottom.subplots(len(rows), 3, width_ratios=[1, 1, 8], squeeze=False)
    for line, (label, truth, y, probs) in zip(axes, rows, strict=True):
        show(line[0], truth)
        line[0].set_ylabel(f"a {label}")
        show(line[1], np.concatenate([y, np.full((4, 8), np.nan)]))
        line[2].bar(
            np.arange(10),
            probs,
            color=["C3" if i == label else "C0" for i in range(10)],
        )
        line[2].set(ylim=(0, 1), xticks=np.arange(10), yticks=[0, 1])
    axes[0, 0].set_title("truth", fontsize=9)
    axes[0, 1].set_title("seen", fontsize=9)
    axes[0, 2].set_title(
        "probability of each class, from its evidence (red: the truth)", fontsize=9
    )
    return figure


def show(axis, image):
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    axis.set(xticks=[], yticks=[], facecolor="#cfe3f5")


if __name__ == "__main__":
    main()
