"""The swiss roll and the heartbeats: problems whose optimal bound is known."""

import jax
import numpy as np

import diffppl as dp
from diffppl.data.toys import HIGH, LOW

from .row import Row, Run, in_bits, num_parameters, timed_fit

BETA_1 = 1e-5


def swiss_roll(run: Run) -> Row:
    """Return the row of the swiss roll: 40 steps, learned levels; the paper omits its beta_1."""
    iterations = run.choose(20, 3_000, 10_000)
    network = dp.networks.MLP(
        (2,), 64, 2, output_shape=(2, 2), fourier_features=64, key=run.key("network")
    )
    model = dp.DiffusionModel(
        dp.GaussianDiffusion(dp.schedules.Learned(40, BETA_1, noise_to_signal=8.0)),
        network,
        (2,),
        prediction=dp.predictions.Velocity(dp.predictions.LearnedVariance()),
        scaling=dp.Scaling(),  # the roll has unit scale
    )
    source = dp.data.SwissRoll()
    model, seconds = timed_fit(
        run,
        "swiss_roll",
        model,
        source,
        num_iterations=iterations,
        batch_size=64,
        loss=dp.losses.ELBOLoss(dp.AllSteps()),
        optimizer=dp.default_optimizer(iterations, learning_rate=1e-2),
    )
    test, _ = source.batch(jax.random.key(1), run.choose(500, 50_000, 200_000))
    value, error = in_bits(dp.elbo(jax.random.key(2), model, test).per_example)
    # The ceiling -H(X_1), from the position along the curve and the noise of beta_1 across it.
    angle = np.linspace(LOW, HIGH, 100_001)
    points = np.asarray(source.curve(angle), np.float64)
    speed = np.sqrt(1 - BETA_1) * np.linalg.norm(np.gradient(points, angle, axis=0), axis=1)
    ceiling = -np.mean(np.log2(np.ptp(angle) * speed)) - 0.5 * np.log2(2 * np.pi * np.e * BETA_1)
    return Row(
        name="swiss roll",
        unit="bits per point",
        paper="2.35",
        value=value,
        error=error,
        null=-float(np.log2(2 * np.pi * np.e)),
        compared={f"ceiling at beta_1 = {BETA_1:g}": float(ceiling)},
        num_steps=40,
        parameters=num_parameters(model),
        iterations=iterations,
        seconds=seconds,
        data="fresh points of a roll without noise",
    )


def heartbeat(run: Run) -> Row:
    """Return the row of the heartbeats: 2,000 steps, five sequences, optimal kernels by listing."""
    num_steps, iterations = run.choose((50, 20), (2_000, 8_000), (2_000, 20_000))
    process = dp.BernoulliDiffusion(dp.schedules.reciprocal(num_steps), rate=0.2)
    data = dp.data.heartbeats()
    network = dp.networks.MLP((20,), width=64, depth=2, key=run.key("network"))
    model, seconds = timed_fit(
        run,
        "heartbeat",
        dp.DiffusionModel(process, network, (20,)),
        data,
        num_iterations=iterations,
        optimizer=dp.default_optimizer(iterations, learning_rate=1e-2),
    )
    exact = dp.denoisers.Enumerated(process, data, np.full(5, 1 / 5))
    test = np.tile(data, (run.choose(2, 500, 2_000), 1))
    bounds = [
        dp.elbo(jax.random.key(2), each, test).per_example
        for each in (model, dp.DiffusionModel(process, exact, (20,)))
    ]
    value, error = in_bits(bounds[0])
    return Row(
        name="binary heartbeat",
        unit="bits per sequence",
        paper="-2.414",
        value=value,
        error=error,
        null=float(20 * (0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))),
        compared={
            "best kernels, same noise": in_bits(bounds[1])[0],
            "perfect model": -float(np.log2(5)),
        },
        num_steps=num_steps,
        parameters=num_parameters(model),
        iterations=iterations,
        seconds=seconds,
        data="all five sequences",
    )
