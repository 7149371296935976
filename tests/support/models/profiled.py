"""Models so small that their bytes can be counted by hand: 8 features in, 8 out, float32.

Each function whose name starts with `build_` is one model. All share inputs and loss.
"""

import torch
from torch import nn
from torch.nn import functional as F


def example_inputs(microbatch_size):
    return (torch.randn(microbatch_size, 8),)


def example_target(microbatch_size):
    return torch.randn(microbatch_size, 8)


def loss_fn(output, target):
    return F.mse_loss(output, target)


def build_perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def build_blocks():
    return nn.Sequential(*(Block() for _ in range(4)))


def build_tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


class Masked(nn.Module):
    """The last layer reads a mask from the first layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Tanh(), Choose()])

    def forward(self, x):
        first = self.layers[0](x)
        mask = first > 0
        return self.layers[2](self.layers[1](first), mask)


class Choose(nn.Module):
    def forward(self, x, mask):
        return torch.where(mask, x, -x)


def build_masked():
    return Masked()


def build_reshaped():
    """The layer between the two linear ones only makes a view."""
    return nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (2, 8)), nn.Linear(8, 4), nn.Flatten(1))


class Halved(nn.Module):
    """Returns half a storage."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(8, 32)

    def forward(self, x):
        return self.wide(x)[:, :16]


def build_halved():
    return nn.Sequential(Halved(), nn.Linear(16, 8))


def build_normalized():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))


def build_frozen():
    model = build_perceptron()
    model[0].requires_grad_(False)
    return model


def build_dropout():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
