# ruff: noqa: D101, D102 (standard layers)
"""`networks.UNet` with one block per level, from the layers of Equinox, channels first."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

FEATURES = 64


def groups(channels: int) -> int:
    return max(n for n in range(1, min(32, channels // 4) + 1) if channels % n == 0)


class Attention(eqx.Module):
    norm: eqx.nn.GroupNorm
    inside: eqx.nn.Conv2d
    outside: eqx.nn.Conv2d
    num_heads: int

    def __init__(self, channels: int, num_heads: int, key: Array) -> None:
        keys = jax.random.split(key)
        self.norm = eqx.nn.GroupNorm(groups(channels), channels)
        self.inside = eqx.nn.Conv2d(channels, 3 * channels, 1, key=keys[0])
        self.outside = eqx.nn.Conv2d(channels, channels, 1, key=keys[1])
        self.num_heads = num_heads

    def __call__(self, x: Array) -> Array:
        parts = self.inside(self.norm(x)).reshape(3, self.num_heads, -1, x.shape[1] * x.shape[2])
        q, k, v = jnp.transpose(parts, (0, 3, 1, 2))
        seen = jax.nn.dot_product_attention(q, k, v)
        return self.outside(jnp.transpose(seen, (1, 2, 0)).reshape(x.shape))


class Block(eqx.Module):
    norms: list[eqx.nn.GroupNorm]
    convolutions: list[eqx.nn.Conv2d]
    modulation: eqx.nn.Linear
    project: eqx.nn.Conv2d | None
    attention: Attention | None

    def __init__(self, inputs: int, outputs: int, width: int, heads: int, key: Array) -> None:
        keys = jax.random.split(key, 5)
        self.norms = [eqx.nn.GroupNorm(groups(n), n) for n in (inputs, outputs)]
        self.convolutions = [
            eqx.nn.Conv2d(n, outputs, 3, padding=1, key=k)
            for n, k in zip((inputs, outputs), keys, strict=False)
        ]
        self.modulation = eqx.nn.Linear(width, 2 * outputs, key=keys[2])
        self.project = None
        if inputs != outputs:
            self.project = eqx.nn.Conv2d(inputs, outputs, 1, key=keys[3])
        self.attention = Attention(outputs, heads, keys[4]) if heads else None

    def __call__(self, h: Array, condition: Array) -> Array:
        a = self.convolutions[0](jax.nn.silu(self.norms[0](h)))
        scale, shift = jnp.split(self.modulation(condition)[:, None, None], 2)
        b = self.convolutions[1](jax.nn.silu(self.norms[1](a) * (1 + scale) + shift))
        h = b + (h if self.project is None else self.project(h))
        return h if self.attention is None else h + self.attention(h)


class PlainUNet(eqx.Module):
    times: list[eqx.nn.Linear]
    first: eqx.nn.Conv2d
    down: list[Block]
    middle: list[Block]
    up: list[Block]
    norm: eqx.nn.GroupNorm
    last: eqx.nn.Conv2d

    def __init__(self, channels: tuple[int, ...], heads: int, key: Array) -> None:
        keys = iter(jax.random.split(key, 2 * len(channels) + 6))
        width, last = 4 * channels[0], len(channels) - 1
        self.times = [eqx.nn.Linear(n, width, key=next(keys)) for n in (FEATURES, width)]
        self.first = eqx.nn.Conv2d(1, channels[0], 3, padding=1, key=next(keys))
        self.down, self.up = [], []
        for i, n in enumerate(channels):
            some = heads if i == last else 0
            above, below = channels[max(i - 1, 0)], channels[min(i + 1, last)]
            self.down.append(Block(above, n, width, some, next(keys)))
            self.up.append(Block(below + n, n, width, some, next(keys)))
        self.middle = [Block(channels[-1], channels[-1], width, n, next(keys)) for n in (heads, 0)]
        self.norm = eqx.nn.GroupNorm(groups(channels[0]), channels[0])
        self.last = eqx.nn.Conv2d(channels[0], 1, 3, padding=1, key=next(keys))

    def __call__(self, x: Array, t: Array) -> Array:
        frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, FEATURES // 2)
        features = jnp.concatenate([jnp.sin(t * frequencies), jnp.cos(t * frequencies)])
        condition = jax.nn.silu(self.times[1](jax.nn.silu(self.times[0](features))))
        h, seen = self.first(x[None]), []
        for i, block in enumerate(self.down):
            if i:
                h = h.reshape(h.shape[0], h.shape[1] // 2, 2, h.shape[2] // 2, 2).mean((2, 4))
            h = block(h, condition)
            seen.append(h)
        for block in self.middle:
            h = block(h, condition)
        for i, block in reversed(list(enumerate(self.up))):
            h = block(jnp.concatenate([h, seen[i]]), condition)
            if i:
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return self.last(jax.nn.silu(self.norm(h)))[0]
