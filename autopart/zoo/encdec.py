"""The encoder-decoder transformer (Vaswani et al., 2017), with the norms before each part.

Every decoder block reads the encoder's output and the source mask. One weight serves both token
embeddings and the head.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.source import ModelSource
from autopart.zoo.tokens import token_loss


@dataclass(frozen=True, slots=True)
class EncoderDecoderSize:
    """base has the paper's shape: `layers` blocks on each side."""

    layers: int
    width: int
    hidden: int
    heads: int
    vocabulary: int
    length: int


SIZES = {
    "tiny": EncoderDecoderSize(3, 96, 256, 4, vocabulary=1000, length=48),
    "base": EncoderDecoderSize(6, 512, 2048, 8, vocabulary=37000, length=512),
}


def source(name: str, size: str) -> ModelSource:
    """The encoder-decoder model in a size from `SIZES`. Each source's last quarter is padding."""
    shape = SIZES[size]

    def example_tokens(microbatch_size: int) -> torch.Tensor:
        return torch.randint(shape.vocabulary, (microbatch_size, shape.length))

    def example_inputs(microbatch_size: int) -> dict[str, torch.Tensor]:
        padded = torch.arange(shape.length) < shape.length * 3 // 4
        return {
            "source": example_tokens(microbatch_size),
            "source_mask": padded.repeat(microbatch_size, 1),
            "target": example_tokens(microbatch_size),
        }

    return ModelSource(
        name, lambda: EncoderDecoder(shape), example_inputs, example_tokens, token_loss
    )


class EncoderDecoder(nn.Module):
    """Source and target ids (batch, length) to target logits (batch, length, vocabulary).

    `source_mask` (batch, length) is false on padding.
    """

    def __init__(self, size: EncoderDecoderSize) -> None:
        super().__init__()
        self.source_tokens = nn.Embedding(size.vocabulary, size.width)
        self.target_tokens = nn.Embedding(size.vocabulary, size.width)
        self.encoder = nn.ModuleList(EncoderBlock(size) for _ in range(size.layers))
        self.encoder_norm = nn.LayerNorm(size.width)
        self.decoder = nn.ModuleList(DecoderBlock(size) for _ in range(size.layers))
        self.decoder_norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        nn.init.normal_(self.head.weight, std=size.width**-0.5)
        self.source_tokens.weight = self.target_tokens.weight = self.head.weight

    def forward(
        self, source: torch.Tensor, source_mask: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        mask = source_mask[:, None, None, :]
        memory = place(self.source_tokens(source))
        for block in self.encoder:
            memory = block(memory, mask)
        memory = self.encoder_norm(memory)
        x = place(self.target_tokens(target))
        for block in self.decoder:
            x = block(x, memory, mask)
        return self.head(self.decoder_norm(x))


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward net, each behind a norm and beside a residual."""

    def __init__(self, size: EncoderDecoderSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width)
        self.feed_forward = feed_forward(size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inner = self.norm1(x)
        x = x + self.attention(inner, inner, mask)
        return x + self.feed_forward(self.norm2(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder's output, and a feed-forward net."""

    def __init__(self, size: EncoderDecoderSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads)
        self.norm2 = nn.LayerNorm(size.width)
        self.cross_attention = Attention(size.width, size.heads)
        self.norm3 = nn.LayerNorm(size.width)
        self.feed_forward = feed_forward(size)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inner = self.norm1(x)
        x = x + self.attention(inner, inner, None)
        x = x + self.cross_attention(self.norm2(x), memory, mask)
        return x + self.feed_forward(self.norm3(x))


class Attention(nn.Module):
    """Attention from `x` to `memory` under a mask, or causal where the mask is None."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        query = self._heads(self.query(x))
        key, value = self._heads(self.key(memory)), self._heads(self.value(memory))
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return self.project(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def feed_forward(size: EncoderDecoderSize) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(
        nn.Linear(size.width, size.hidden), nn.ReLU(), nn.Linear(size.hidden, size.width)
    )


def place(tokens: torch.Tensor) -> torch.Tensor:
    """Scale embeddings (batch, length, width) by sqrt(width), and add position sinusoids."""
    length, width = tokens.shape[1:]
    exponents = torch.arange(0, width, 2, device=tokens.device) / width
    positions = torch.arange(length, device=tokens.device)
    angles = torch.outer(positions.float(), 10000.0**-exponents)
    sinusoids = torch.cat((angles.sin(), angles.cos()), dim=1)
    return tokens * width**0.5 + sinusoids.to(tokens.dtype)
