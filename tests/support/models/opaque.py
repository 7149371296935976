"""Small models with code that no graph can hold: it depends on values, or changes gradients."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Routed(nn.Module):
    """Sends rows to experts by their values, in the root's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList(block() for _ in range(3))
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.after = nn.ModuleList(block() for _ in range(3))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.before:
            x = layer(x)
        choice = self.router(x).argmax(1)
        routed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = choice == index
            if chosen.any():
                routed[chosen] = expert(x[chosen])
        x = x + routed
        for layer in self.after:
            x = layer(x)
        return self.last(x)


def routed() -> nn.Module:
    return Routed()


class Picking(nn.Module):
    """Runs three layers, and picks the result of one by the value of a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.results = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        a = self.results[0](h)
        b = self.results[1](h)
        c = self.results[2](h)
        picked = a if x[0, 0] > 0.4 else b if x[0, 0] > -0.4 else c
        return self.last(picked)


def picking() -> nn.Module:
    return Picking()


class Skipping(nn.Module):
    """Skips layers by numpy's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(4))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if np.random.random() > 0.3:
                x = layer(x)
        return self.last(x)


def skipping() -> nn.Module:
    return Skipping()


class Forces(nn.Module):
    """Its forces are the gradient of its energy."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(block() for _ in range(3)), nn.Linear(WIDTH, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        energy = self.layers(x)
        (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy - gradient


def forces() -> nn.Module:
    return Forces()


def hooked() -> nn.Module:
    """A hook changes the gradient of a parameter."""
    model = nn.Sequential(*(block() for _ in range(4)))
    model[1][0].weight.register_hook(lambda gradient: gradient * 0.1)
    return model


def lazy() -> nn.Module:
    """Its first forward gives the parameters their shapes."""
    return nn.Sequential(*(nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh()) for _ in range(4)))


class Overwriting(nn.Module):
    """Writes into its own values behind a dropout of probability 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.first(x))
        x[:, 0] = 0
        return self.last(torch.tanh(x))


def overwriting() -> nn.Module:
    return nn.Sequential(*(Overwriting() for _ in range(4)))


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    return (torch.randn(microbatch_size, WIDTH),)


def example_target(microbatch_size: int) -> torch.Tensor:
    return torch.randn(microbatch_size, WIDTH)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target)
