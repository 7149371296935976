"""U-Net (Ronneberger et al., 2015): each decoder level reads its encoder level again.

So the first skip crosses nearly every cut. Convolutions are padded, which keeps sides even.
"""

from dataclasses import dataclass

import torch
from torch import nn

from autopart.zoo.images import image_source
from autopart.zoo.source import ModelSource


@dataclass(frozen=True, slots=True)
class UNetSize:
    """Level i has `channels * 2**i` channels, for i below `levels`; the last level is the bottom."""

    levels: int
    channels: int
    side: int
    classes: int


SIZES = {
    "tiny": UNetSize(levels=4, channels=8, side=48, classes=4),
    "base": UNetSize(levels=5, channels=64, side=512, classes=2),
}


def source(name: str, size: str) -> ModelSource:
    """The U-Net in a size from `SIZES`."""
    shape = SIZES[size]
    return image_source(name, lambda: UNet(shape), shape.side, shape.classes, per_pixel=True)


class UNet(nn.Module):
    """Images (batch, 3, side, side) to class scores (batch, classes, side, side)."""

    def __init__(self, size: UNetSize) -> None:
        super().__init__()
        widths = [size.channels * 2**level for level in range(size.levels)]
        self.encoder = nn.ModuleList(
            two_convolutions(incoming, width)
            for incoming, width in zip([3, *widths], widths[:-1], strict=False)
        )
        self.bottom = two_convolutions(widths[-2], widths[-1])
        self.decoder = nn.ModuleList(UpBlock(width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(size.channels, size.classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        skips: list[torch.Tensor] = []
        for level in self.encoder:
            skips.append(level(x))
            x = self.pool(skips[-1])
        x = self.bottom(x)
        for level, skip in zip(self.decoder, reversed(skips), strict=True):
            x = level(x, skip)
        return self.head(x)


class UpBlock(nn.Module):
    """Double the side, halve the channels, and join the encoder's output on the same level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join = two_convolutions(2 * width, width)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat((skip, self.widen(x)), dim=1))


def two_convolutions(incoming: int, outgoing: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with a ReLU, drawn as in the paper (deviation sqrt(2 / fan in))."""
    first = nn.Conv2d(incoming, outgoing, 3, padding=1)
    second = nn.Conv2d(outgoing, outgoing, 3, padding=1)
    for convolution in (first, second):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
