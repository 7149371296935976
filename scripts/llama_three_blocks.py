"""A model file: the large Llamas of the zoo with three blocks; scripts/repeated_blocks.py repeats the inner one."""

from dataclasses import replace

import torch

from autopart.zoo.llama import SIZES, Llama
from autopart.zoo.tokens import token_loss as loss_fn

__all__ = ["build_70b", "build_405b", "example_inputs", "example_target", "loss_fn"]


def build_70b() -> Llama:
    return Llama(replace(SIZES["70b"], layers=3))


def build_405b() -> Llama:
    return Llama(replace(SIZES["405b"], layers=3))


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randint(SIZES["70b"].vocabulary, (microbatch_size, SIZES["70b"].length))


def example_target(microbatch_size: int) -> torch.Tensor:
    return example_inputs(microbatch_size)
