"""Models whose forward takes a random path, prints, or gives NaN."""

import random
import subprocess
import sys

import numpy as np
import torch
from torch import nn

WIDTH = 8


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class SkippedByPython(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if random.random() < 0.5:
                x = torch.tanh(block(x))
        return x + super().forward(x)


class ScaledByNumpy(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float(np.random.uniform(0.5, 1.5))


class Drawing(Body):
    """The path is fixed, though the forward draws a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random()
        return super().forward(x)


class Printing(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sys.stdout.write("forward\n")
        subprocess.run(["echo", "child"], check=True)
        return super().forward(x)


class LogOfNegative(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(super().forward(x) - 2.0)


def plain() -> nn.Module:
    return Body()


def skipped_by_python() -> nn.Module:
    return SkippedByPython()


def scaled_by_numpy() -> nn.Module:
    return ScaledByNumpy()


def drawing() -> nn.Module:
    return Drawing()


def printing() -> nn.Module:
    sys.stdout.write("build\n")
    return Printing()


def log_of_negative() -> nn.Module:
    return LogOfNegative()


def nan_parameter() -> nn.Module:
    model = Body()
    nn.init.constant_(model.get_parameter("blocks.1.bias"), float("nan"))
    return model


def one_for_ever() -> nn.Module:
    """The same module in each call."""
    return ONE


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.rand(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)


def _seeded() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Body()


ONE = _seeded()
