"""Inputs, targets and loss for the language models."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from autopart.zoo.source import ModelSource


def language_source(
    name: str, build_model: Callable[[], torch.nn.Module], vocabulary: int, length: int
) -> ModelSource:
    """A model from token ids (microbatch, length) to logits (microbatch, length, vocabulary)."""

    def example_tokens(microbatch_size: int) -> torch.Tensor:
        return torch.randint(vocabulary, (microbatch_size, length))

    return ModelSource(name, build_model, example_tokens, example_tokens, token_loss)


def token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between each position's logits and its target token, averaged."""
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
