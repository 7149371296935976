"""GPT-2 (Radford et al., 2019): a decoder whose head is its token embedding."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.source import ModelSource
from autopart.zoo.tokens import language_source


@dataclass(frozen=True, slots=True)
class GPT2Size:
    """Shapes from the paper's table 2; 1.3b is GPT-3's (Brown et al., 2020, table 2.1) with GPT-2's
    vocabulary."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50257
    length: int = 1024


SIZES = {
    "tiny": GPT2Size(layers=8, width=128, heads=4, vocabulary=1000, length=64),
    "124m": GPT2Size(layers=12, width=768, heads=12),
    "350m": GPT2Size(layers=24, width=1024, heads=16),
    "774m": GPT2Size(layers=36, width=1280, heads=20),
    "1.3b": GPT2Size(layers=24, width=2048, heads=32),
}


def source(name: str, size: str) -> ModelSource:
    """The GPT-2 model in a size from `SIZES`."""
    shape = SIZES[size]
    return language_source(name, lambda: GPT2(shape), shape.vocabulary, shape.length)


class GPT2(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary)."""

    def __init__(self, size: GPT2Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self._initialise(size.layers)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def _initialise(self, layers: int) -> None:
        """Normal weights with deviation 0.02, smaller where they write into the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / (2 * layers) ** 0.5 if into_residual else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Block(nn.Module):
    """Attention and a feed-forward net, each behind a LayerNorm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers with four times the width between them, and GPT-2's GELU approximation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))
