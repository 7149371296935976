"""Models that draw random numbers in forward."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 16


class Block(nn.Module):
    """A residual block with dropout, and with stochastic depth for each sample."""

    def __init__(self, keeps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.2, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.keeps = keeps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.down(F.dropout(F.gelu(self.up(x)), 0.1, self.training))
        kept = y.new_empty(y.shape[0], 1, 1).bernoulli_(self.keeps).div_(self.keeps)
        return x + y * kept


class Diffusion(nn.Module):
    """Adds noise outside all modules, and learns to predict it."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 6, WIDTH) * 0.02)
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(1.0 - 0.1 * n) for n in range(1, blocks + 1))
        self.leave = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x.transpose(1, 2)  # strides differ from those of a received tensor
        noise = torch.randn_like(x)
        h = self.enter(0.8 * x + 0.6 * noise) + self.place
        for block in self.blocks:
            h = block(h)
        return {"loss": F.mse_loss(self.leave(h), noise)}


class Skipping(nn.Module):
    """A block that skips itself by chance, which no graph can contain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) < 0.5:
            return x
        return x + F.dropout(torch.tanh(self.inner(x)), 0.3, self.training)


class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Skipping() for _ in range(4))
        self.leave = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.enter(x.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return {"loss": self.leave(x).square().mean()}


class SkippingLayers(LayerDrop):
    """Skips its blocks by chance itself, as wav2vec2 does: the whole model is one layer."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.enter(x.transpose(1, 2))
        for block in self.blocks:
            if torch.rand(()) > 0.3:
                x = block(x)
        return {"loss": self.leave(x).square().mean()}


class Scaling(nn.Module):
    """Scales by numbers from Python's generator; no graph can contain its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x) * (0.5 + random.random())
        return torch.tanh(y) + random.random() if x.isfinite().all() else x


class PythonsNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Scaling() for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return {"loss": x.square().mean()}


NUMBERS = np.random.default_rng(5)


class Wandering(nn.Module):
    """Skips and repeats its blocks by the numbers of several generators, some of its own.

    One statement draws until a number is small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(4))
        self.numbers, self.others = np.random.default_rng(3), random.Random(4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x.transpose(1, 2)
        for block in self.blocks:
            if self.numbers.random() > 0.3:
                x = block(x) * (1.0 + random.random() * np.random.rand() - NUMBERS.random())
            while np.random.random() > 0.2:
                x = torch.tanh(x) * (1.0 + 0.1 * self.others.random())
        return {"loss": x.square().mean()}


def diffusion() -> nn.Module:
    return Diffusion()


def layer_drop() -> nn.Module:
    return LayerDrop()


def skipping_layers() -> nn.Module:
    return SkippingLayers()


def pythons_numbers() -> nn.Module:
    return PythonsNumbers()


def wandering() -> nn.Module:
    return Wandering()


def example_inputs(microbatch_size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(microbatch_size, WIDTH, 6)}
