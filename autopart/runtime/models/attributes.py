"""Parameters, buffers and modules by their dotted names, which are the user's own."""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autopart.errors import ModelError

WRAPPED = "model."
"""What the wrapper around the user's model puts before each of its names."""


def user_name(name: str) -> str:
    """A name as the user's own model has it."""
    return name.removeprefix(WRAPPED)


def attach(root: nn.Module, name: str, value: object, *, persistent: bool = True) -> None:
    """Put a parameter, buffer or module under a dotted name; the object itself, no copy."""
    *path, last = name.split(".")
    try:
        for step in path:
            if step not in root._modules:
                root.add_module(step, nn.Module())
            root = root.get_submodule(step)
        if isinstance(value, nn.Parameter):
            root.register_parameter(last, value)
        elif isinstance(value, torch.Tensor):
            root.register_buffer(last, value, persistent=persistent)
        else:
            assert isinstance(value, nn.Module)
            root.add_module(last, value)
    except KeyError as error:
        raise ModelError(
            f"the model has a part called '{name}', a name that graph modules need for "
            f"themselves ({error.args[0]}); rename it"
        ) from error


def lookup(root: nn.Module, name: str) -> Any:
    """The parameter, buffer or module under a dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def is_persistent(root: nn.Module, name: str) -> bool:
    """Whether the buffer under a dotted name is part of the state dict."""
    path, _, last = name.rpartition(".")
    return last not in root.get_submodule(path)._non_persistent_buffers_set


def persistent_buffers(model: nn.Module) -> frozenset[int]:
    """The ids of the buffers that are part of the model's state dict."""
    return frozenset(
        id(buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    )


def user_names(model: nn.Module) -> Mapping[int, str]:
    """The user's first name of each parameter and buffer object."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {id(value): user_name(name) for name, value in named}
