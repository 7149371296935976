"""Models with a few hundred parameters, one for each awkward feature of real models."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopart.runtime.models.model import TrainingModel

Batch = tuple[Any, Any]
WIDTH = 8


def square_loss(output: Any, target: Any) -> torch.Tensor:
    return (output**2).mean() if target is None else ((output - target) ** 2).mean()


def training(model: nn.Module, loss: Any = square_loss, *, double: bool = True) -> TrainingModel:
    """Return the model with a loss and weights from a fixed seed, in float64 by default."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    wrapped = TrainingModel(model, loss, name=type(model).__name__)
    return wrapped.double() if double else wrapped


def batch(*shape: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    size = shape or (4, WIDTH)
    return (torch.randn(size, generator=generator, dtype=torch.float64),), None


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


class Block(nn.Module):
    """Two linear layers and a residual."""

    def __init__(self, width: int = WIDTH, *, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.mlp(self.norm(x))) * self.scale


class Blocks(nn.Module):
    """The given blocks, one after another, between two linear layers."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.first = linear()
        self.blocks = nn.ModuleList(blocks)
        self.last = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class SkipNet(nn.Module):
    """A one-dimensional U-Net: later layers need results of early ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Block(), Block(), Block()])
        self.bottom = Block()
        self.up = nn.ModuleList([nn.Linear(2 * WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        x = self.bottom(x)
        for layer in self.up:
            x = layer(torch.cat((x, kept.pop()), dim=-1))
        return x


class Residual(nn.Module):
    """A ResNet block: BatchNorm, in-place ReLU, in-place sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class TiedDecoder(nn.Module):
    """Token and position embeddings, a mask that every block reads, and a head tied to the
    tokens."""

    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, WIDTH)
        self.positions = nn.Parameter(torch.zeros(6, WIDTH))
        self.blocks = nn.ModuleList([MaskedBlock() for _ in range(num_blocks)])
        self.head = nn.Linear(WIDTH, 16, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril() & mask[:, None]
        for block in self.blocks:
            x = block(x, allowed)
        return {"logits": self.head(x)}


class MaskedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = linear()

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return x + self.out(
            functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        )


def decoder_batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(16, (3, 6), generator=generator)
    mask = torch.tensor([6, 4, 5])[:, None] > torch.arange(6)
    return {"ids": ids, "mask": mask}, ids.roll(-1, 1)


def decoder_loss(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output["logits"].flatten(0, 1), target.flatten())


class Experts(nn.Module):
    """Experts beside each other, all computed, mixed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = self.gate(x).softmax(-1)
        mixed = torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            mixed = mixed + share[..., place : place + 1] * expert(x)
        return x + mixed


class Hesitant(nn.Module):
    """Its control flow depends on values. It has several outputs, and a BatchNorm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        y = self.norm(self.linear(x))
        if y.abs().sum() > 0:
            y = y * 2
        return {"y": x + y * scale, "statistics": (y.mean(), None)}


class Hesitating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = linear()
        self.blocks = nn.ModuleList([Hesitant() for _ in range(2)])
        self.last = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.first(x), torch.zeros((), dtype=x.dtype)
        for block in self.blocks:
            output = block(x, scale=0.5)
            x, total = output["y"], total + output["statistics"][0]
        return self.last(x) + total


class Hard(torch.autograd.Function):
    """Rounds, and doubles the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return 2 * gradients[0]


class Rounding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Hard.apply(x * 4) / 4  # pyright: ignore
