# ruff: noqa: D101, D102 (standard layers)
"""`networks.UNet` with one block per level, in PyTorch: the same layers on batches of images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its conventional name)

from .equinox_unet import FEATURES, groups


class Attention(nn.Module):
    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.inside = nn.Conv2d(channels, 3 * channels, 1)
        self.outside = nn.Conv2d(channels, channels, 1)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inside(self.norm(x)).reshape(len(x), 3, self.num_heads, -1, x[0, 0].numel())
        q, k, v = parts.transpose(3, 4).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.outside(seen.transpose(2, 3).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups(n), n) for n in (inputs, outputs))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n, outputs, 3, padding=1) for n in (inputs, outputs)
        )
        self.modulation = nn.Linear(width, 2 * outputs)
        self.project = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs, heads) if heads else None

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        a = self.convolutions[0](F.silu(self.norms[0](h)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        b = self.convolutions[1](F.silu(self.norms[1](a) * (1 + scale) + shift))
        h = b + self.project(h)
        return h if self.attention is None else h + self.attention(h)


class PlainUNet(nn.Module):
    def __init__(self, channels: tuple[int, ...], heads: int) -> None:
        super().__init__()
        width, last = 4 * channels[0], len(channels) - 1
        self.times = nn.ModuleList(nn.Linear(n, width) for n in (FEATURES, width))
        self.first = nn.Conv2d(1, channels[0], 3, padding=1)
        down, up = [], []
        for i, n in enumerate(channels):
            some = heads if i == last else 0
            above, below = channels[max(i - 1, 0)], channels[min(i + 1, last)]
            down.append(Block(above, n, width, some))
            up.append(Block(below + n, n, width, some))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = nn.ModuleList(Block(channels[-1], channels[-1], width, n) for n in (heads, 0))
        self.norm = nn.GroupNorm(groups(channels[0]), channels[0])
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1)
        self.register_buffer("frequencies", 10_000.0 ** -torch.linspace(0.0, 1.0, FEATURES // 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        condition = F.silu(self.times[1](F.silu(self.times[0](features))))
        h, seen = self.first(x[:, None]), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, condition)
            seen.append(h)
        for block in self.middle:
            h = block(h, condition)
        for i, block in reversed(list(enumerate(self.up))):
            h = block(torch.cat([h, seen[i]], dim=1), condition)
            h = F.interpolate(h, scale_factor=2) if i else h
        return self.last(F.silu(self.norm(h)))[:, 0]
