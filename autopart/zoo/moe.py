"""A decoder with mixtures of experts as feed-forward nets, two experts per token.

Routing is dense: every expert sees every token, and unchosen gates are zero. So shapes do not
depend on data. As in Switch (Fedus et al., 2021), the blocks sum a balance loss. It is a second
value that flows through all blocks.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.gpt2 import Attention
from autopart.zoo.source import ModelSource
from autopart.zoo.tokens import token_loss

_CHOSEN = 2
_BALANCE_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class MoESize:
    """`experts` feed-forward nets with `hidden` inner features in each block, and `layers` blocks."""

    layers: int
    width: int
    hidden: int
    heads: int
    experts: int
    vocabulary: int
    length: int


SIZES = {
    "tiny": MoESize(4, 96, 192, 4, experts=4, vocabulary=1000, length=48),
    "small": MoESize(12, 512, 1024, 8, experts=8, vocabulary=32000, length=512),
}


def source(name: str, size: str) -> ModelSource:
    """The mixture-of-experts model in a size from `SIZES`."""
    shape = SIZES[size]

    def example_tokens(microbatch_size: int) -> torch.Tensor:
        return torch.randint(shape.vocabulary, (microbatch_size, shape.length))

    return ModelSource(name, lambda: MoE(shape), example_tokens, example_tokens, balanced_loss)


def balanced_loss(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, plus a hundredth times the balance loss."""
    logits, balance = output
    return token_loss(logits, target) + _BALANCE_WEIGHT * balance


class MoE(nn.Module):
    """Token ids (batch, length) to logits (batch, length, vocabulary) and a scalar balance loss."""

    def __init__(self, size: MoESize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        balance = x.new_zeros(())
        for block in self.blocks:
            x, balance = block(x, balance)
        return self.head(self.norm(x)), balance


class Block(nn.Module):
    """Attention and a mixture of experts, each behind a LayerNorm and beside a residual."""

    def __init__(self, size: MoESize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width)
        self.experts = Experts(size)

    def forward(self, x: torch.Tensor, balance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.attention(self.norm1(x))
        mixed, own_balance = self.experts(self.norm2(x))
        return x + mixed, balance + own_balance


class Experts(nn.Module):
    """Feed-forward nets. Each token adds its two likeliest ones, weighted by their gates."""

    def __init__(self, size: MoESize) -> None:
        super().__init__()
        self.router = nn.Linear(size.width, size.experts, bias=False)
        self.up = nn.Parameter(torch.empty(size.experts, size.width, size.hidden))
        self.down = nn.Parameter(torch.empty(size.experts, size.hidden, size.width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        likelihood = self.router(x).softmax(-1)
        best, chosen = likelihood.topk(_CHOSEN, dim=-1)
        gates = torch.zeros_like(likelihood).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        inner = F.gelu(torch.einsum("blw,ewh->eblh", x, self.up))
        outputs = torch.einsum("eblh,ehw->eblw", inner, self.down)
        mixed = torch.einsum("eblw,ble->blw", outputs, gates)
        return mixed, balance_loss(likelihood, gates)


def balance_loss(likelihood: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """experts * sum over experts of (share of tokens sent there * mean likelihood); 1 if even."""
    experts = likelihood.shape[-1]
    share = (gates > 0).to(likelihood.dtype).mean((0, 1)) / _CHOSEN
    return experts * (share * likelihood.mean((0, 1))).sum()
