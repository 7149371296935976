"""Small models, one for each thing that a rule of the context pass must see or refuse."""

import torch
from torch import nn
from torch.nn import functional

from tests.support.runtime.sharded_models import LENGTH, VOCABULARY, WIDTH, heads


class CausalAttention(nn.Module):
    """Causal attention by torch's kernel, with written-out scores, or under a mask of the last 5 positions or of all.

    By the kernel it is "fused", with dropout ("dropped"), or with "wide values".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        widths = (WIDTH, 8, 16 if kind == "wide values" else 8)
        self.query, self.key, self.value = (nn.Linear(WIDTH, size) for size in widths)
        self.out = nn.Linear(2 * WIDTH, WIDTH) if kind == "wide values" else nn.Identity()
        self.bias = nn.Parameter(torch.randn(LENGTH) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = (heads(f(x), 4) for f in (self.query, self.key))
        value = heads(self.value(x), 8 if self.kind == "wide values" else 4)
        places = torch.arange(x.shape[1])
        distance = places[:, None] - places
        if self.kind in ("fused", "dropped", "wide values"):
            dropout = 0.1 if self.kind == "dropped" else 0.0
            mixed = functional.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True, enable_gqa=True
            )
        elif self.kind in ("masked", "causal mask"):
            nearest = distance < (5 if self.kind == "masked" else LENGTH)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=(distance >= 0) & nearest, enable_gqa=True
            )
        else:
            key, value = (y.repeat_interleave(2, 1) for y in (key, value))
            scores = query @ key.transpose(2, 3) / 2 + self.bias[distance.abs()]
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            mixed = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class TwoAttentions(nn.Module):
    """Causal attention by torch's kernel, then under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = CausalAttention("fused"), CausalAttention("masked")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Decoder(nn.Module):
    """A language model with learned positions around one block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.block, self.norm = block, nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.block(x)))


class WrittenKeys(nn.Module):
    """Attention whose keys are written in two parts into a new tensor, as DeepSeek-V3's are."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (heads(f(x), 4) for f in (self.query, self.key, self.value))
        joined = torch.empty(key.shape, dtype=key.dtype)
        joined[..., :1].copy_(key[..., 1:2])
        joined[..., 1:].copy_(key[..., 1:])
        mixed = functional.scaled_dot_product_attention(query, joined, value, is_causal=True)
        return x + mixed.transpose(1, 2).flatten(2)


class Pooled(nn.Module):
    """Each token is scaled by a gate that reads the mean over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x.mean(1)).sigmoid()
        return self.out(x * gate[:, None] + self.gate.bias) + gate.square().sum()


class SortedExperts(nn.Module):
    """Tokens sorted by expert, two experts per token, with runs of rows cut by their counts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from transformers.integrations.moe import _grouped_mm

        rows = x.reshape(-1, WIDTH)
        shares, chosen = self.router(rows).softmax(-1).topk(2, dim=-1)
        experts, order = chosen.flatten().sort()
        ends = torch.histc(experts.double(), bins=4, min=0, max=3).cumsum(0).to(torch.int32)
        done = _grouped_mm(rows[order // 2], self.up, ends) * shares.flatten()[order][:, None]
        return torch.zeros_like(rows).index_add(0, order // 2, done).reshape(x.shape)


class Convolved(nn.Module):
    """A convolution over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class BatchNormed(nn.Module):
    """A batch norm over samples and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Accumulated(nn.Module):
    """A running sum over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x).cumsum(1)


class SortedTokens(nn.Module):
    """Tokens in the order of a score."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.score(x).sort(1)[0]


class FirstToken(nn.Module):
    """The first token's vector, added to all."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(x)[:, :1]


class SequenceFirst(nn.Module):
    """Attention over the first dimension of (sequence, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(x).transpose(0, 1)[:, None]
        return functional.scaled_dot_product_attention(y, y, y)[:, 0].transpose(0, 1)
