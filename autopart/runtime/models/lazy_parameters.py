"""Lazy parameters, which torch gives a shape in the model's first forward (``nn.LazyLinear``)."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from autopart.errors import ModelError
from autopart.runtime.models.user_code import user_code


def has_lazy_parameters(model: nn.Module) -> bool:
    """Tell whether a parameter or buffer has no shape yet."""
    return bool(_lazy(model))


def give_shapes(model: nn.Module, inputs: Any, name: str) -> None:
    """Run the model once, in eval mode, so that lazy parameters get shapes and first values.

    `inputs` are positional arguments, or keyword arguments in a dict. Training modes stay as they
    were. Raises ModelError where the forward raises or does not reach a lazy parameter.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()  # norms must not count this forward as a step
    try:
        with (
            torch.no_grad(),
            user_code(f"{name}: the first forward, which shapes lazy parameters,"),
        ):
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    left = _lazy(model)
    if left:
        raise ModelError(
            f"{name}: the lazy parameter '{left[0]}' has no shape after one forward; build it with "
            "its shape"
        )


def _lazy(model: nn.Module) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, value in named if is_lazy(value)]
