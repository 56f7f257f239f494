"""Image data and the U-Net of the examples that reproduce figures of the paper."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

import diffppl as dp


def unet(event_shape: tuple[int, ...], *, tiny: bool, **settings: Any) -> dp.networks.UNet:
    """Return a U-Net that trains in minutes on two cores."""
    channels = (4, 4) if tiny else (16, 32, 32)
    return dp.networks.UNet(event_shape, channels, key=jax.random.key(0), **settings)


def fit(
    network: eqx.Module,
    source: dp.data.AbstractSource,
    *,
    num_steps: int,
    iterations: int,
    highest: float,
) -> dp.DiffusionModel:
    """Fit dequantised eight-bit images, with noise levels up to `highest`."""
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(
            dp.schedules.log_snr_linear(num_steps, noise_to_signal=(0.01, highest))
        ),
        network=network,
        event_shape=source.event_shape,
    )
    return dp.fit(
        jax.random.key(1),
        model,
        dp.data.Dequantised(source),
        num_iterations=iterations,
        batch_size=32,
        loss=dp.losses.SimpleLoss(),
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
    ).model


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Return the sides and the middles of the two photographs of scikit-learn, at half size.

    Shapes (4, 213, 128, 3) and (2, 213, 64, 3).
    """
    images = np.stack(load_sample_images().images)[:, :426]
    small = images.reshape(2, 213, 2, 320, 2, 3).mean(axis=(2, 4)).astype(np.uint8)
    return np.concatenate([small[:, :, :128], small[:, :, 192:]]), small[:, :, 128:192]


def ridges(seed: int, height: int, width: int) -> np.ndarray:
    """Return a synthetic bark texture: irregular ridges with cracks between them, and grain."""
    rng = np.random.default_rng(seed)

    def smooth(*scale: float) -> np.ndarray:
        noise = gaussian_filter(rng.normal(size=(height, width)), scale, mode="wrap")
        return noise / noise.std()

    across = np.arange(width) + 5 * smooth(25, 6) + 2 * smooth(6, 3)
    ridge = np.abs(np.sin(np.pi * across / 16)) ** 0.6
    grey = 50 + 120 * ridge + 15 * smooth(8, 2) + 8 * smooth(1, 1)
    return np.clip(grey, 0, 255).astype(np.uint8)
