"""Speed of image networks: `networks.UNet` in `fit` and `sample`, compared with plain programs.

The same U-Net is trained and sampled by the library, by a plain Equinox program (channels first,
one compiled call per iteration or step) and, if PyTorch is installed, by a plain PyTorch program.
Timings alternate, so that other load on the machine affects all of them. For one core:

    taskset -c 0 python benchmarks/image_networks.py

Target: training as fast as PyTorch, sampling 1.2 times as fast.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from plain.equinox_unet import PlainUNet

import diffppl as dp

NUM_HEADS = 4
# Functions of a program: train a number of iterations, draw a number of samples.
Pair = tuple[Callable[[int], Any], Callable[[int], Any]]


def library(data: np.ndarray, channels: tuple[int, ...], num_steps: int, batch_size: int) -> Pair:
    event_shape = data.shape[1:]
    key = jax.random.key(0)
    model = dp.DiffusionModel(
        process=dp.GaussianDiffusion(dp.schedules.cosine(num_steps)),
        network=dp.networks.UNet(event_shape, channels, num_heads=NUM_HEADS, key=key),
        event_shape=event_shape,
        scaling=dp.Scaling(0.0, 1.0),
    )
    print(model)
    optimizer = optax.adam(1e-3)
    length = {"chunk": 20, "progress_bar": False, "batch_size": batch_size, "optimizer": optimizer}

    def train(num: int) -> Any:
        return dp.fit(key, model, data, num_iterations=num, **length).state

    def draw(num: int) -> Any:
        return dp.sample(key, model, (num,), batch_size=batch_size)

    return train, draw


def plain(data: np.ndarray, channels: tuple[int, ...], num_steps: int, batch_size: int) -> Pair:
    alpha_bar = jnp.asarray(dp.schedules.cosine(num_steps).alpha_bar())
    network = PlainUNet(channels, NUM_HEADS, jax.random.key(0))
    optimizer, images = optax.adam(1e-3), jnp.asarray(data, dtype=jnp.float32)

    @eqx.filter_jit
    def step(network: PlainUNet, state: Any, key: Any) -> Any:
        keys = jax.random.split(key, 3)
        x_0 = images[jax.random.randint(keys[0], (batch_size,), 0, len(images))]
        t = jax.random.randint(keys[1], (batch_size,), 2, num_steps + 1)
        noise = jax.random.normal(keys[2], x_0.shape)
        a = jnp.sqrt(alpha_bar[t])[:, None, None]
        s = jnp.sqrt(1 - a**2)

        def loss(network: PlainUNet) -> Any:
            outputs = jax.vmap(network)(a * x_0 + s * noise, t)
            return jnp.mean((outputs - (a * noise - s * x_0)) ** 2)

        gradient = eqx.filter_grad(loss)(network)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(network, updates), state

    @eqx.filter_jit
    def down(network: PlainUNet, x: Any, t: Any, key: Any) -> Any:
        velocity = jax.vmap(network, in_axes=(0, None))(x, t)
        a, a_next = alpha_bar[t], alpha_bar[t - 1]
        beta = 1 - a / a_next
        mean = jnp.sqrt(a) * x - jnp.sqrt(1 - a) * velocity
        mean = (jnp.sqrt(a_next) * beta * mean + jnp.sqrt(1 - beta) * (1 - a_next) * x) / (1 - a)
        scale = jnp.sqrt(beta * (1 - a_next) / (1 - a))
        return mean + scale * jax.random.normal(key, x.shape)

    def train(num: int) -> Any:
        now, state = network, optimizer.init(eqx.filter(network, eqx.is_array))
        for key in jax.random.split(jax.random.key(1), num):
            now, state = step(now, state, key)
        return jax.tree.leaves(eqx.filter(now, eqx.is_array))

    def draw(num: int) -> Any:
        found = []
        for key in jax.random.split(jax.random.key(2), max(num // batch_size, 1)):
            x = jax.random.normal(key, (batch_size, *data.shape[1:]))
            for t in range(num_steps, 1, -1):
                x = down(network, x, jnp.asarray(t), jax.random.fold_in(key, t))
            found.append(x)
        return found

    return train, draw


def in_torch(data: np.ndarray, channels: tuple[int, ...], num_steps: int, batch_size: int) -> Pair:
    import torch
    from plain.torch_unet import PlainUNet

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    alpha_bar = torch.tensor(np.asarray(dp.schedules.cosine(num_steps).alpha_bar()))
    network, images = PlainUNet(channels, NUM_HEADS), torch.tensor(data, dtype=torch.float32)

    def train(num: int) -> None:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(num):
            x_0 = images[torch.randint(len(images), (batch_size,))]
            t = torch.randint(2, num_steps + 1, (batch_size,))
            noise, a = torch.randn_like(x_0), alpha_bar[t].sqrt()[:, None, None]
            s = (1 - a**2).sqrt()
            loss = ((network(a * x_0 + s * noise, t) - (a * noise - s * x_0)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def draw(num: int) -> None:
        for _ in range(max(num // batch_size, 1)):
            x = torch.randn(batch_size, *data.shape[1:])
            for t in range(num_steps, 1, -1):
                velocity = network(x, torch.full((batch_size,), t))
                a, a_next = alpha_bar[t], alpha_bar[t - 1]
                beta = 1 - a / a_next
                mean = a.sqrt() * x - (1 - a).sqrt() * velocity
                mean = a_next.sqrt() * beta * mean + (1 - beta).sqrt() * (1 - a_next) * x
                scale = (beta * (1 - a_next) / (1 - a)).sqrt()
                x = mean / (1 - a) + scale * torch.randn_like(x)

    return train, draw


def main(
    size: int,
    channels: tuple[int, ...],
    num_steps: int,
    batch_size: int,
    iterations: int,
    samples: int,
    rounds: int,
) -> dict[str, Any]:
    """Print the images per second of each program, and its time relative to the library."""
    data = np.random.default_rng(0).standard_normal((10_000, size, size)).astype(np.float32)
    settings = (data, channels, num_steps, batch_size)
    programs = {"diffppl": library(*settings), "equinox": plain(*settings)}
    try:
        programs["torch"] = in_torch(*settings)
    except ImportError:
        print("PyTorch is not installed: left out.")
    found: dict[str, Any] = {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    print(f"cores: {found['cores']}, load: {found['load']:.1f}")
    for i, (task, num) in enumerate({"training": iterations, "sampling": samples}.items()):
        images = num * batch_size if task == "training" else max(num // batch_size, 1) * batch_size

        def seconds(pair: Pair, i: int = i, num: int = num) -> float:
            begin = time.perf_counter()
            jax.block_until_ready(pair[i](num))
            return time.perf_counter() - begin

        for pair in programs.values():
            seconds(pair)
        times = [{name: seconds(pair) for name, pair in programs.items()} for _ in range(rounds)]
        for name in programs:
            ratio = statistics.median(turn[name] / turn["diffppl"] for turn in times)
            speed = images / statistics.median(turn[name] for turn in times)
            found[f"{task} {name}"] = {"images per second": speed, "times as slow": ratio}
            print(
                f"{task:9s} {name:8s} {speed:9.1f} images/s, {ratio:.2f} times as slow as diffppl"
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of a small network")
    parser.add_argument("--output", type=Path, default=Path("output"))
    settings = vars(parser.parse_args())
    output = settings.pop("output")
    if settings.pop("tiny"):
        settings |= {"channels": [8, 8], "num_steps": 4, "batch_size": 4, "iterations": 20}
        settings |= {"samples": 4, "rounds": 1}
    numbers = main(**settings | {"channels": tuple(settings["channels"])})
    output.mkdir(parents=True, exist_ok=True)
    (output / "image_networks.json").write_text(json.dumps(numbers, indent=2) + "\n")
