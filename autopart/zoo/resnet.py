"""ResNet-50 (He et al., 2015), with the stride in the 3x3 convolution as common today."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.images import image_source
from autopart.zoo.source import ModelSource

_EXPANSION = 4
"""A bottleneck's output channels divided by its inner channels."""


@dataclass(frozen=True, slots=True)
class ResNetSize:
    """`blocks[i]` bottlenecks with `channels * 2**i` inner channels each."""

    blocks: tuple[int, ...]
    channels: int
    side: int
    classes: int


SIZES = {
    "tiny": ResNetSize((2, 2, 2, 2), channels=16, side=64, classes=10),
    "50": ResNetSize((3, 4, 6, 3), channels=64, side=224, classes=1000),
}


def source(name: str, size: str) -> ModelSource:
    """The ResNet in a size from `SIZES`."""
    shape = SIZES[size]
    return image_source(name, lambda: ResNet(shape), shape.side, shape.classes)


class ResNet(nn.Module):
    """Images (batch, 3, side, side) to class scores (batch, classes)."""

    def __init__(self, size: ResNetSize) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, size.channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(size.channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList()
        incoming = size.channels
        for place, count in enumerate(size.blocks):
            for first in (True, *[False] * (count - 1)):
                inner = size.channels * 2**place
                self.blocks.append(Bottleneck(incoming, inner, 2 if first and place else 1))
                incoming = inner * _EXPANSION
        self.head = nn.Linear(incoming, size.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a residual, projected where shapes differ."""

    def __init__(self, incoming: int, inner: int, stride: int) -> None:
        super().__init__()
        outgoing = inner * _EXPANSION
        self.reduce = convolution(incoming, inner, kernel=1)
        self.spatial = convolution(inner, inner, kernel=3, stride=stride)
        self.expand = convolution(inner, outgoing, kernel=1)
        same = stride == 1 and incoming == outgoing
        self.shortcut = nn.Identity() if same else convolution(incoming, outgoing, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.spatial(F.relu(self.reduce(x))))
        return F.relu(self.expand(inner) + self.shortcut(x))


def convolution(incoming: int, outgoing: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A padded convolution and its BatchNorm."""
    padding = kernel // 2
    plain = nn.Conv2d(incoming, outgoing, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(plain.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(plain, nn.BatchNorm2d(outgoing))
