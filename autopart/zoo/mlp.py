"""A long multilayer perceptron: a plain chain with equal layers, the easiest model to cut."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.source import ModelSource


@dataclass(frozen=True, slots=True)
class MLPSize:
    """`layers` square layers. One example is `rows` vectors with `width` features."""

    layers: int
    width: int
    rows: int


SIZES = {
    "tiny": MLPSize(layers=16, width=192, rows=128),
    "64": MLPSize(layers=64, width=1024, rows=128),
}


def source(name: str, size: str) -> ModelSource:
    """The perceptron in a size from `SIZES`."""
    shape = SIZES[size]

    def example_rows(microbatch_size: int) -> torch.Tensor:
        return torch.randn(microbatch_size, shape.rows, shape.width)

    return ModelSource(name, lambda: build(shape), example_rows, example_rows, F.mse_loss)


def build(size: MLPSize) -> nn.Sequential:
    """`size.layers` layers, each a linear map and a ReLU that keep the signal's variance."""
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(size.width, size.width), nn.ReLU()) for _ in range(size.layers))
    )
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)
    return model
