"""Small models, one for each thing that a rule of the sharding pass must see."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.tensor_plan import weight_styles
from autopart.runtime.sharding.shard import ShardedGraph, shard_graph
from tests.support.runtime.small_models import training

WIDTH = 16
LENGTH = 8
VOCABULARY = 96


class Case(NamedTuple):
    """A captured model and one microbatch."""

    captured: Captured
    leaves: tuple[torch.Tensor, ...]

    def sharded(self, degree: int, *, sequence_parallel: bool = False) -> ShardedGraph:
        return shard_graph(self.captured, degree, sequence_parallel=sequence_parallel)


@cache
def known_model(name: str, samples: int = 2) -> Case:
    """A model of the zoo, or a model file, with microbatches of some samples."""
    source = load_model(name)
    model, batch = build_training_model(source), example_batch(source, samples)
    captured = capture_model(model, batch)
    return Case(captured, tuple(batch_leaves(captured, batch).values()))


def small_model(
    model: nn.Module,
    loss: Callable[..., Any] | None = None,
    tp_plan: Mapping[str, str] | None = None,
) -> Case:
    """`model` on tokens where it has an embedding, else on (2, length, width)."""
    generator = torch.Generator().manual_seed(1)
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        ids = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        batch: Any = ((ids,), ids.roll(1, 1))
    else:
        batch = ((torch.randn(2, LENGTH, WIDTH, generator=generator, dtype=torch.float64),), None)
    trained = training(model, loss or _loss)
    trained.weight_styles = weight_styles(model, tp_plan, "model")
    captured = capture_model(trained, batch)
    return Case(captured, tuple(batch_leaves(captured, batch).values()))


def _loss(output: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    if target is None:
        return (output**2).mean()
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, length, width) to (batch, heads, length, head width)."""
    return x.unflatten(2, (-1, width)).transpose(1, 2)


class Attention(nn.Module):
    """Attention with its own number of key-value heads, fused projections, or products written out."""

    def __init__(
        self, kind: str, num_heads: int = 4, key_value_heads: int = 4, head: int = 4
    ) -> None:
        super().__init__()
        self.kind, self.head = kind, head
        self.sizes = [num_heads * head, key_value_heads * head, key_value_heads * head]
        self.fused = nn.Linear(WIDTH, sum(self.sizes))
        self.query, self.key, self.value = (nn.Linear(WIDTH, size) for size in self.sizes)
        self.out = nn.Linear(num_heads * head, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind.startswith("fused"):
            fused = self.fused(x)
            if self.kind == "fused view":
                parts = fused.view(*x.shape[:2], 3, -1, self.head).permute(2, 0, 3, 1, 4)
                query, key, value = parts.unbind(0)
            else:
                query, key, value = (heads(p, self.head) for p in fused.split(self.sizes, dim=2))
        else:
            query, key, value = (
                heads(made(x), self.head) for made in (self.query, self.key, self.value)
            )
        return self.out(self._mixed(query, key, value).transpose(1, 2).flatten(2))

    def _mixed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if self.kind == "repeated":
            groups = query.shape[1] // key.shape[1]
            shape = (key.shape[0], key.shape[1], groups, *key.shape[2:])
            key, value = (x[:, :, None].expand(shape).flatten(1, 2) for x in (key, value))
        if self.kind == "written out":
            return (query @ key.transpose(2, 3) / self.head**0.5).softmax(-1) @ value
        shared = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(query, key, value, enable_gqa=shared)


class Gated(nn.Module):
    """A feed-forward net whose gate and value are one projection, with a scale of each column."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(WIDTH, 8 * WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(4 * WIDTH))
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * value * self.scale)


class Parallel(nn.Module):
    """Two branches that read the same norm and are added to the residual together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention, self.gated = Attention("plain"), Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + (self.attention(y) + self.gated(y))


class MovedWeights(nn.Module):
    """Products with parameters whose dimensions are moved first, in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / WIDTH)
        self.middle = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH) / WIDTH)
        self.down = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x @ self.up.t())
        y = torch.tanh(torch.matmul(y, self.middle.transpose(0, 1)))
        return x + y @ self.down.permute(1, 0) + self.down.t().sum()


class HeadNorm(nn.Module):
    """A linear layer whose result is normalized head by head, and a softmax over all columns."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(4)
        self.down, self.router = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.down(self.norm(self.up(x).unflatten(2, (4, 4))).flatten(2))
        return own * self.router(x).softmax(-1).amax(-1, keepdim=True)


class ColumnMean(nn.Module):
    """A mean over the columns of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x).exp().mean(-1) + self.up(x).sum(2)


class Tied(nn.Module):
    """A language model whose head is its embedding, with learned positions."""

    def __init__(self, *, padding: int | None = None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
        self.positions = nn.Parameter(torch.ones(LENGTH, WIDTH))
        self.block, self.norm = Parallel(), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.tokens(ids) + self.positions)))
