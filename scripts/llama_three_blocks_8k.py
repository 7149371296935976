"""A model file: scripts/llama_three_blocks.py with 8,192 tokens per sample."""

import torch
from llama_three_blocks import build_70b, build_405b, loss_fn

from autopart.zoo.llama import SIZES

__all__ = ["build_70b", "build_405b", "example_inputs", "example_target", "loss_fn"]
LENGTH = 8192


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randint(SIZES["70b"].vocabulary, (microbatch_size, LENGTH))


def example_target(microbatch_size: int) -> torch.Tensor:
    return example_inputs(microbatch_size)
