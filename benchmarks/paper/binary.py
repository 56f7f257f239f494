"""Binarized MNIST with two processes: the negative ELBO in nats per image, as is customary."""

from typing import Any

import jax
import numpy as np

import diffppl as dp

from . import files
from .images import unet
from .row import Row, Run, Size, num_parameters, timed_fit


def binarized(run: Run, name: str, process: Any, categories: int | None) -> Row:
    """Fit a model of bits with the given process, and return its negative ELBO in nats."""
    split = files.binarized_mnist(run)
    shape = split.train.shape[1:]
    states = {"num_categories": categories} if categories else {}
    output = {"output_shape": (*shape, 2)} if categories else {}
    patch = {"patch": 2} if run.size is Size.SMALL else {}
    iterations = run.choose(10, 6_000, 100_000)
    model, seconds = timed_fit(
        run,
        name,
        dp.DiffusionModel(process, unet(run, shape, **states, **output, **patch), shape),
        split.train.astype(np.int32),
        num_iterations=iterations,
        batch_size=run.choose(8, 64, 128),
        optimizer=dp.default_optimizer(iterations, learning_rate=run.choose(1e-3, 2e-3, 5e-4)),
    )
    test = split.test[:: run.choose(30, 10, 1)].astype(np.int32)
    steps = dp.SampledSteps(min(model.num_steps - 1, 50))
    bound = -np.asarray(dp.elbo(jax.random.key(2), model, test, steps=steps).per_example)
    rate = np.clip(split.train.mean(axis=0), 1e-3, 1 - 1e-3)
    coins = -np.sum(np.where(test == 1, np.log(rate), np.log1p(-rate)), axis=(1, 2))
    return Row(
        name=f"binarized MNIST, {name}",
        unit="nats per image, smaller is better",
        paper="-",
        value=float(bound.mean()),
        error=float(bound.std(ddof=1) / np.sqrt(len(bound))),
        null=float(coins.mean()),
        compared={},
        num_steps=model.num_steps,
        parameters=num_parameters(model),
        iterations=iterations,
        seconds=seconds,
        data=split.name,
    )


def bernoulli(run: Run) -> Row:
    """Return the row of Bernoulli diffusion with the mean rate of the images as base."""
    schedule = dp.schedules.reciprocal(run.choose(20, 1_000, 1_000))
    return binarized(run, "bernoulli", dp.BernoulliDiffusion(schedule, rate=0.13), None)


def absorbing(run: Run) -> Row:
    """Return the row of absorbing (masked) diffusion."""
    schedule = dp.schedules.reciprocal(run.choose(20, 784, 784))
    process = dp.CategoricalDiffusion(schedule, 2, dp.Absorbing())
    return binarized(run, "absorbing", process, 3)
