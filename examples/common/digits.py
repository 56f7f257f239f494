"""The prior of the quickstart, a model of handwritten digits, cached in a file."""

import pathlib

import jax
import quickstart

import diffppl as dp


def prior(output: pathlib.Path, *, tiny: bool) -> dp.DiffusionModel:
    """Load the model from `output/digits.dppl`, or fit it and save it there."""
    path, num_steps, width = output / "digits.dppl", 20 if tiny else 100, 32 if tiny else 256
    if path.exists():
        model = dp.load(path)
        if model.num_steps >= num_steps:  # not the model of a --tiny run
            return model
    iterations = 20 if tiny else 3_000
    result = dp.fit(
        jax.random.key(1),
        quickstart.define(num_steps, width),
        quickstart.load()[0],
        num_iterations=iterations,
        batch_size=256,
        optimizer=dp.default_optimizer(iterations, learning_rate=2e-3),
    )
    dp.save(path, result.model)
    return result.model
