"""A model file: a few layers of Llama 3 8B at full width, with its embedding and head.

The slice has the stages of an 8B pipeline. It fits a GPU that could not train the whole model.
"""

import torch

from autopart.zoo.llama import SIZES, Llama, LlamaSize
from autopart.zoo.tokens import token_loss as loss_fn

WHOLE = SIZES["8b"]
SLICE = LlamaSize(
    4,
    WHOLE.width,
    WHOLE.hidden,
    WHOLE.heads,
    WHOLE.key_value_heads,
    WHOLE.vocabulary,
    WHOLE.length,
    tied=False,
)

__all__ = ["build_model", "example_inputs", "example_target", "loss_fn"]


def build_model() -> Llama:
    return Llama(SLICE)


def example_inputs(microbatch_size: int) -> torch.Tensor:
    return torch.randint(SLICE.vocabulary, (microbatch_size, SLICE.length))


def example_target(microbatch_size: int) -> torch.Tensor:
    return example_inputs(microbatch_size)
