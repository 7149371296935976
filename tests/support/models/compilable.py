"""A small model for torch's compiler: dropout, a batch norm with buffers, and one opaque block."""

import torch
from torch import nn

WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # A bias before a norm has no gradient but rounding, which the compiler changes.
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(torch.tanh(self.norm(self.mix(x))))


class ByValue(nn.Module):
    """Its control flow depends on values, so it runs as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x) if x.sum() > 0 else self.mix(-x)


def build_model() -> nn.Module:
    return nn.Sequential(Block(), Block(), ByValue(), Block())


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.rand(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
