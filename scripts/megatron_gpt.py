"""A model file: GPTs of Korthikanti et al. (2022) with the operations that Megatron ran, three blocks each.

All blocks between the first and the last are alike, so scripts/compare_korthikanti.py repeats the middle one.

Attention writes its scores out, so that dropout can act on them. Megatron scales them inside the product that makes them,
and masks them inside its softmax kernel. There both move no bytes and keep nothing, so they are left out here: this model is
for bytes and analytic times, not for training.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.tokens import token_loss as loss_fn

__all__ = ["GPT", "Size", "build_1t", "build_22b", "build_175b", "build_530b"]
__all__ += ["example_inputs", "example_target", "loss_fn"]

LENGTH, VOCABULARY, DROPOUT = 2048, 51200, 0.1


class Size(NamedTuple):
    """A GPT's width, heads and blocks."""

    width: int
    heads: int
    blocks: int = 3


def build_22b() -> nn.Module:
    return GPT(Size(6144, 64))


def build_175b() -> nn.Module:
    return GPT(Size(12288, 96))


def build_530b() -> nn.Module:
    return GPT(Size(20480, 128))


def build_1t() -> nn.Module:
    return GPT(Size(25600, 160))


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (microbatch_size, LENGTH))


def example_target(microbatch_size: int) -> torch.Tensor:
    return example_inputs(microbatch_size)


class GPT(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary); embedding and head are one weight."""

    def __init__(self, size: Size, vocabulary: int = VOCABULARY, length: int = LENGTH) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size.width)
        self.positions = nn.Embedding(length, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = F.dropout(self.tokens(ids) + self.positions(places), DROPOUT, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention and a feed-forward net, each behind a norm, with dropout before the residual."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.core = Core(size.heads)
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.query_key_value = nn.Linear(size.width, 3 * size.width)
        self.project = nn.Linear(size.width, size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.project(self.core(self.query_key_value(self.norm1(x))))
        x = x + F.dropout(mixed, DROPOUT, self.training)
        wide = F.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + F.dropout(self.down(wide), DROPOUT, self.training)


class Core(nn.Module):
    """Attention between its two linear layers, with written-out scores: the part that selective recomputation runs again."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """Mix (batch, length, query key value) to (batch, length, width)."""
        batch, length, _ = fused.shape
        split = fused.view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        chances = F.dropout((query @ key.transpose(-2, -1)).softmax(-1), DROPOUT, self.training)
        return (chances @ value).transpose(1, 2).reshape(batch, length, -1)
