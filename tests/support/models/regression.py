"""A model file as a user writes it: four linear layers and a squared error."""

import torch
from torch import nn

WIDTH = 16


def build_model() -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.rand(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)
