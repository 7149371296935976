"""A Llama 3 decoder (Dubey et al., 2024) with few key-value heads.

Its vocabulary is so large that embedding and head outweigh the blocks beside them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.source import ModelSource
from autopart.zoo.tokens import language_source


@dataclass(frozen=True, slots=True)
class LlamaSize:
    """1b (3.2), 8b, 70b and 405b as published, with fewer tokens; tiny keeps their vocabulary to width ratio."""

    layers: int
    width: int
    hidden: int
    heads: int
    key_value_heads: int
    vocabulary: int
    length: int
    tied: bool
    """Whether head and token embedding share one weight."""


SIZES = {
    "tiny": LlamaSize(6, 96, 256, 4, 2, vocabulary=8000, length=64, tied=False),
    "1b": LlamaSize(16, 2048, 8192, 32, 8, vocabulary=128256, length=2048, tied=True),
    "8b": LlamaSize(32, 4096, 14336, 32, 8, vocabulary=128256, length=4096, tied=False),
    "70b": LlamaSize(80, 8192, 28672, 64, 8, vocabulary=128256, length=4096, tied=False),
    "405b": LlamaSize(126, 16384, 53248, 128, 8, vocabulary=128256, length=4096, tied=False),
}

_ROTARY_BASE = 500_000.0


def source(name: str, size: str) -> ModelSource:
    """The Llama model in a size from `SIZES`."""
    shape = SIZES[size]
    return language_source(name, lambda: Llama(shape), shape.vocabulary, shape.length)


class Llama(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.head_width = size.width // size.heads
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        if size.tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        rotary = rotary_table(ids.shape[1], self.head_width, x.device)
        for block in self.blocks:
            x = block(x, rotary)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention and a gated feed-forward net, each behind an RMSNorm and beside a residual."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.norm1 = RMSNorm(size.width)
        self.attention = Attention(size)
        self.norm2 = RMSNorm(size.width)
        self.feed_forward = SwiGLU(size.width, size.hidden)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), rotary)
        return x + self.feed_forward(self.norm2(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the mean square in float32 (Zhang & Sennrich, 2019)."""

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention in which several query heads share each key-value head."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.head_width = size.width // size.heads
        shared = size.key_value_heads * self.head_width
        self.query = nn.Linear(size.width, size.width, bias=False)
        self.key = nn.Linear(size.width, shared, bias=False)
        self.value = nn.Linear(size.width, shared, bias=False)
        self.project = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        query = rotate(self._heads(self.query(x)), rotary)
        key = rotate(self._heads(self.key(x)), rotary)
        value = self._heads(self.value(x))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to (batch, heads, length, head width)."""
        return x.unflatten(2, (-1, self.head_width)).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotary_table(length: int, head_width: int, device: torch.device) -> torch.Tensor:
    """Cosines and sines (2, length, head width / 2) for each position's rotation angles (Su et al.,
    2021)."""
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, _ROTARY_BASE**-exponents)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (x[i], x[i + half]) in the last dimension by their positions' angles."""
    cosine, sine = rotary.to(x.dtype).unbind(0)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
