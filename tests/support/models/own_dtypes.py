"""Models with several dtypes of their own, and one whose batch norms are frozen."""

import torch
from torch import nn

WIDTH = 16


class Mixed(nn.Module):
    """A body in bfloat16 and a head in float32, as scripts write it by hand."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3)]
        self.body = nn.Sequential(*blocks).to(torch.bfloat16)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.to(torch.bfloat16)).float())


class ComplexBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.mix(x))


class Complex(nn.Module):
    """Complex weights, and complex values between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ComplexBlock() for _ in range(3))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.complex64)
        for block in self.blocks:
            x = block(x)
        return self.head(x.real)


class NormedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.norm(self.mix(x)))


def mixed() -> nn.Module:
    return Mixed()


def with_complex() -> nn.Module:
    return Complex()


def frozen() -> nn.Module:
    """The batch norms of the first two blocks are in eval mode, the third is not."""
    blocks = [NormedBlock() for _ in range(3)]
    blocks[0].norm.eval()
    blocks[1].eval()
    return nn.Sequential(*blocks)


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.rand(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
