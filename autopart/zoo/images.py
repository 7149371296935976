"""Inputs, targets and loss for the image models."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from autopart.zoo.source import ModelSource


def image_source(
    name: str,
    build_model: Callable[[], nn.Module],
    side: int,
    classes: int,
    *,
    per_pixel: bool = False,
) -> ModelSource:
    """A model from RGB images (microbatch, 3, side, side) to class scores.

    The scores are one set per image, or per pixel: (microbatch, classes, side, side).
    """

    def example_images(microbatch_size: int) -> torch.Tensor:
        return torch.randn(microbatch_size, 3, side, side)

    def example_classes(microbatch_size: int) -> torch.Tensor:
        shape = (microbatch_size, side, side) if per_pixel else (microbatch_size,)
        return torch.randint(classes, shape)

    return ModelSource(name, build_model, example_images, example_classes, class_loss)


def class_loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between scores (second dimension) and target classes, averaged."""
    return F.cross_entropy(scores.float(), target)
