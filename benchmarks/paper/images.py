"""Bark, dead leaves, CIFAR-10 and MNIST.

Likelihoods are of eight-bit images with uniform noise of one level. As in the paper they are for
images scaled to unit variance, in bits per pixel, larger is better; the null model is N(0, I). The
Gaussian baseline has the full covariance of small windows of the same images with the same noise:
a model of second-order statistics only.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from sklearn.decomposition import PCA

import diffppl as dp

from . import files
from .row import Row, Run, Size, in_bits, num_parameters, timed_fit

WINDOW = 8  # side of the windows of the Gaussian baseline, in pixels
GREYS = dist.DiscreteUniform(0, 255)


def real_model(network: Any, event_shape: tuple[int, ...], num_steps: int) -> dp.DiffusionModel:
    """Define a model with log-spaced noise levels, up to four times the norm of an image."""
    highest = 4 * float(np.sqrt(np.prod(event_shape)))
    return dp.DiffusionModel(
        dp.GaussianDiffusion(
            dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.003, highest))
        ),
        network,
        event_shape,
    )


def unet(run: Run, event_shape: tuple[int, ...], **settings: Any) -> Any:
    """Return a U-Net of the size of the run; in mixed precision at full size."""
    key = run.key("network")
    if run.size is Size.TINY:  # a U-Net takes half a minute to compile
        settings.pop("channel_axis", None)
        return dp.networks.MLP(event_shape, 8, 1, key=key, **settings)
    if run.size is Size.SMALL:
        return dp.networks.UNet(event_shape, (16, 32), key=key, **settings)
    return dp.networks.MixedPrecision(
        dp.networks.UNet(event_shape, (64, 128, 192), num_blocks=2, key=key, **settings)
    )


def gaussian_window(train: np.ndarray, test: np.ndarray) -> float:
    """Return the mean log2-density per coordinate of a Gaussian fitted to training windows."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    fitted = scipy.stats.multivariate_normal(train.mean(axis=0), np.cov(train.T))
    return in_bits(fitted.logpdf(test), train.shape[1])[0]


def draw(source: dp.data.AbstractSource, key: jax.Array, num: int) -> np.ndarray:
    """Draw images from a source in batches."""
    batch = eqx.filter_jit(lambda key: source.batch(key, 500)[0])
    keys = jax.random.split(key, -(-num // 500))
    return np.concatenate([np.asarray(batch(k)) for k in keys])[:num]


def density_row(
    run: Run,
    name: str,
    paper: str,
    source: dp.data.AbstractSource,
    test: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    *,
    num_steps: int,
    iterations: int,
    batch_size: int,
    data: str,
    channel_axis: int | None = None,
) -> Row:
    """Fit a U-Net to dequantised images, and return the bits per pixel of held-out ones."""
    shape = source.event_shape
    network = unet(run, shape, channel_axis=channel_axis)
    model, seconds = timed_fit(
        run,
        name,
        real_model(network, shape, num_steps),
        source,
        num_iterations=iterations,
        batch_size=batch_size,
        optimizer=dp.default_optimizer(iterations, learning_rate=run.choose(1e-3, 2e-3, 5e-4)),
    )
    assert model.scaling is not None
    scale, numbers = float(model.scaling.scale), int(np.prod(shape))
    colours = 1 if channel_axis is None else shape[channel_axis]
    bound = dp.elbo(jax.random.key(2), model, test, steps=dp.SampledSteps(min(num_steps - 1, 50)))
    pixels = numbers // colours
    value, error = in_bits(bound.per_example, pixels)
    unit = colours * np.log2(scale)  # change of variables to unit variance, in bits per pixel
    scaled = (test - float(model.scaling.loc)) / scale
    null = -0.5 * colours * (np.log2(2 * np.pi) + np.mean(scaled**2) / np.log(2))
    bits = dp.likelihood.bits_per_dim(bound, shape)
    return Row(
        name=name,
        unit="bits per pixel",
        paper=paper,
        value=value + unit,
        error=error,
        null=float(null),
        compared={
            f"Gaussian of {WINDOW} x {WINDOW} windows": colours * gaussian_window(*windows) + unit,
            "bits per dimension (smaller is better)": float(bits.value),
        },
        num_steps=num_steps,
        parameters=num_parameters(model),
        iterations=iterations,
        seconds=seconds,
        data=data,
    )


def dead_leaves(run: Run) -> Row:
    """Return the row of dead leaves, radii with density r^-3; the paper's data are unavailable."""
    side, radii = run.choose(8, 16, 32), (1.0, 16.0)
    leaves = dp.data.DeadLeaves((side, side), radii, grey=GREYS)
    windows = dp.data.Dequantised(dp.data.DeadLeaves((WINDOW, WINDOW), radii, grey=GREYS))
    num = run.choose(2_000, 20_000, 50_000)
    return density_row(
        run,
        "dead leaves",
        "1.489 (others' images)",
        dp.data.Dequantised(leaves),
        draw(dp.data.Dequantised(leaves), jax.random.key(3), run.choose(20, 1_000, 4_000)),
        (draw(windows, jax.random.key(4), num), draw(windows, jax.random.key(5), num)),
        num_steps=run.choose(20, 1_000, 1_000),
        iterations=run.choose(4, 4_000, 100_000),
        batch_size=run.choose(4, 64, 128),
        data=f"fresh images, {side} x {side}, radii {radii[0]:g} to {radii[1]:g}, 256 greys",
    )


def bark(run: Run) -> Row:
    """Return the row of bark textures; held-out windows are from held-out images."""
    side, split = run.choose(8, 32, 64), files.bark(run)

    def noisy(images: np.ndarray, side: int) -> dp.data.Dequantised:
        return dp.data.Dequantised(dp.data.Crops(images, (side, side)))

    num = run.choose(2_000, 20_000, 50_000)
    return density_row(
        run,
        "bark",
        "-0.55",
        noisy(split.train, side),
        draw(noisy(split.test, side), jax.random.key(3), run.choose(20, 500, 2_000)),
        (
            draw(noisy(split.train, WINDOW), jax.random.key(4), num),
            draw(noisy(split.test, WINDOW), jax.random.key(5), num),
        ),
        num_steps=run.choose(20, 500, 500),
        iterations=run.choose(4, 2_000, 60_000),
        batch_size=run.choose(4, 32, 64),
        data=f"{split.name}; windows of {side} x {side}",
    )


def cifar10(run: Run) -> Row:
    """Return the row of CIFAR-10, with random horizontal flips."""
    split = files.cifar10(run)
    test = np.asarray(dp.data.dequantise(jax.random.key(3), split.test))[: run.choose(8, 500, None)]

    def windows(images: np.ndarray, key: jax.Array) -> np.ndarray:
        return draw(
            dp.data.Dequantised(dp.data.Crops(images, (WINDOW, WINDOW))),
            key,
            run.choose(2_000, 20_000, 50_000),
        )

    return density_row(
        run,
        "CIFAR-10",
        "5.4 ± 0.2",
        dp.data.Dequantised(dp.data.Flipped(split.train)),
        test,
        (windows(split.train, jax.random.key(4)), windows(split.test, jax.random.key(5))),
        num_steps=run.choose(20, 1_000, 1_000),
        iterations=run.choose(4, 1_500, 100_000),
        batch_size=run.choose(2, 32, 128),
        data=split.name,
        channel_axis=-1,
    )


def unet_digits(run: Run, train: np.ndarray) -> tuple[np.ndarray, dp.DiffusionModel, float, int]:
    """Fit a U-Net to pixels; return samples in [0, 1], the model, seconds and iterations."""
    shape, iterations = train.shape[1:], 100_000
    model, seconds = timed_fit(
        run,
        "mnist",
        real_model(unet(run, shape), shape, 1_000),
        dp.data.Dequantised(train),
        num_iterations=iterations,
        batch_size=256,
        loss=dp.losses.SimpleLoss(),
        optimizer=dp.default_optimizer(iterations, learning_rate=5e-4),
    )
    drawn = np.asarray(dp.sample(jax.random.key(3), dp.clipped(model, 0, 256), (10_000,)))
    return np.clip(np.floor(drawn), 0, 255) / 255, model, seconds, iterations


def dense_digits(
    run: Run, directions: PCA, train: np.ndarray
) -> tuple[np.ndarray, dp.DiffusionModel, float, int]:
    """Fit a dense network to principal components; return the same, with samples as pixels."""
    components = directions.n_components
    width, num_steps = run.choose((16, 20), (512, 1_000), None)
    iterations, num, kept = run.choose((10, 100, 20), (4_000, 10_000, 200), None)
    data = directions.transform(train.reshape(len(train), -1) / 255)
    model, seconds = timed_fit(
        run,
        "mnist",
        dp.DiffusionModel(
            dp.GaussianDiffusion(dp.schedules.cosine(num_steps)),
            dp.networks.MLP((components,), width, 4, key=run.key("network")),
            (components,),
            # A common scale for all components, so that the loss weights them by their variance.
            scaling=dp.Scaling.from_data(data, per_coordinate=False),
        ),
        data,
        num_iterations=iterations,
        batch_size=run.choose(16, 512, None),
        loss=dp.losses.SimpleLoss(),
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
    )
    drawn = np.asarray(dp.sample(jax.random.key(3), model, (num,), num_steps=kept))
    pixels = np.clip(directions.inverse_transform(drawn), 0, 1)
    return pixels.reshape(num, *train.shape[1:]), model, seconds, iterations


def mnist(run: Run) -> Row:
    """Return the row of Parzen-window log-densities, by the protocol of table 2, in bits."""
    split = files.mnist(run)
    if len(split.train) > 20_000:  # the last ones select the bandwidth
        fitted, held_out = split.train[:-10_000], split.train[-10_000:][:1_000]
    else:
        fitted, held_out = split.train, split.test[:100]
    directions = None
    if run.size is Size.FULL:
        samples, model, seconds, iterations = unet_digits(run, fitted)
    else:
        directions = PCA(run.choose(20, 200, None)).fit(fitted.reshape(len(fitted), -1) / 255)
        samples, model, seconds, iterations = dense_digits(run, directions, fitted)
    others = np.random.default_rng(0).permutation(len(split.train))[: len(samples)]
    perfect = split.train[others] / 255
    compared = {"training images as samples": perfect}
    if directions is not None:  # a smooth reference has a higher log-density than the images
        flat = perfect.reshape(len(perfect), -1)
        smooth = np.clip(directions.inverse_transform(directions.transform(flat)), 0, 1)
        compared["their principal components"] = smooth.reshape(perfect.shape)

    def bits(samples: np.ndarray) -> tuple[float, float]:
        found = dp.likelihood.parzen(samples, held_out / 255, split.test / 255)
        return in_bits(found.log_likelihood.per_example)

    value, error = bits(samples)
    return Row(
        name="MNIST, Parzen windows",
        unit="bits per image",
        paper="317 ± 2.7",
        value=value,
        error=error,
        null=None,
        compared={name: bits(images)[0] for name, images in compared.items()},
        num_steps=model.num_steps,
        parameters=num_parameters(model),
        iterations=iterations,
        seconds=seconds,
        data=f"{split.name}; {'principal components' if directions else 'pixels'}",
    )
