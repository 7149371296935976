"""Small models, each awkward to train in a pipeline for a reason of its own."""

import os

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8


def linears(count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(count)))


def frozen_start() -> nn.Module:
    """Nothing in the first half is trained, so no gradient crosses the cut."""
    model = linears(4)
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    return model


def partly_used() -> nn.Module:
    """The loss ignores one parameter, which an optimizer with weight decay must not touch."""
    model = linears(4)
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    return model


class Gate(nn.Module):
    """Lets values through where others are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (others > 0)


class Signs(nn.Module):
    """Only the signs of one layer's result count, so its weights get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.signs, self.values = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.last = Gate(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        signs = self.signs(x)
        return self.last(self.gate(self.values(x), signs))


def signs() -> nn.Module:
    return Signs()


def with_dropout() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(layer, nn.Dropout(0.5)) for layer in linears(4)))


class Selective(nn.Module):
    """Its control flow depends on its input values, and it has its own dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.linear(x), 0.5, self.training)
        return y if x.sum() > 0 else y * 2.0


def data_dependent() -> nn.Module:
    return nn.Sequential(*linears(2), Selective(), *linears(2))


def unseeded() -> nn.Module:
    """Every process has its own weights."""
    model = linears(4)
    nn.init.constant_(model[2][0].bias, os.getpid() / 1e6)
    return model


class Masked(nn.Module):
    """Integer and boolean tensors cross the cut beside floating ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linears(2)
        self.last = linears(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        top = h.argmax(-1, keepdim=True)
        h = self.last(h)
        return h.gather(-1, top).masked_fill(top == 3, 0.0) + h


def masked() -> nn.Module:
    return Masked()


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    return (torch.randn(microbatch_size, WIDTH),)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target)
