"""Moments of x_0 under whole reverse chains, in float64 and without `diffppl`."""

import numpy as np
from jaxtyping import ArrayLike


def gaussian_chain_moments(
    mean: ArrayLike, variance: ArrayLike, alpha_bar: ArrayLike, *, lower: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variances of x_0 of a reverse chain with E[x_0 | x_t] of N(mean, variance).

    Its kernels are linear and have the lower variance, so that the number of steps matters, or that
    of Var[x_0 | x_t]; the final step is the fixed one.
    """
    m, c, abar = (np.asarray(x, np.float64) for x in (mean, variance, alpha_bar))
    at, spread = np.zeros_like(m), np.ones_like(m)
    for t in range(len(abar) - 1, 0, -1):
        now, before = abar[t], abar[t - 1]
        beta = 1 - now / before
        slope, shift, added = np.sqrt(1 - beta), 0.0, beta
        if t > 1:
            b = np.sqrt(before) * beta / (1 - now)
            gain = np.sqrt(now) * c / (now * c + 1 - now)  # d E[x_0 | x_t] / d x_t
            slope = b * gain + np.sqrt(1 - beta) * (1 - before) / (1 - now)
            shift = b * (1 - np.sqrt(now) * gain) * m
            added = beta * (1 - before) / (1 - now)
            if not lower:
                added = added + b**2 * c * (1 - now) / (now * c + 1 - now)
        at, spread = slope * at + shift, slope**2 * spread + added
    return at, spread


def matched_chain_moments(
    mean: np.ndarray, variance: np.ndarray, noise_to_signal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of x_0 under the covariance-matched chain, for data N(mean, variance).

    Args:
        mean, variance: shape `(d,)`.
        noise_to_signal: of the levels 1..T, rising.
    """
    tau2 = noise_to_signal**2
    found, spread = np.zeros_like(mean), 1 + tau2[-1] + np.zeros_like(variance)
    for t2, s2 in zip(tau2[:0:-1], tau2[-2::-1], strict=True):
        gain, kept = variance / (variance + t2), s2 / t2
        slope = kept + (1 - kept) * gain
        noise = s2 * (1 - kept) * (1 + (np.sqrt(t2 / s2) - 1) * gain) ** 2
        found = slope * found + (1 - kept) * (1 - gain) * mean
        spread = slope**2 * spread + noise
    gain = variance / (variance + tau2[0])
    noise = tau2[0] / 4 * (1 + gain) ** 2
    return gain * found + (1 - gain) * mean, gain**2 * spread + noise
