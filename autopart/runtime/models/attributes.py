"""Parameters, buffers and modules by dotted name, as the user names them."""

# pyright: reportPrivateUsage=false

import keyword
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autopart.errors import ModelError

WRAPPED = "model."
"""Prefix that the wrapper around the user's model adds to each name."""


def user_name(name: str) -> str:
    """Return the name that the user's own model gives to `name`."""
    return name.removeprefix(WRAPPED)


def attach(root: nn.Module, name: str, value: object, *, persistent: bool = True) -> None:
    """Register `value` itself (no copy) as parameter, buffer or module under a dotted name.

    Missing modules on the path are created. Raises ModelError where a module reserves the name.
    """
    *path, last = steps = name.split(".")
    if reserved := next(filter(keyword.iskeyword, steps), None):
        raise ModelError(
            f"the model has a part called '{name}', and '{reserved}' is a word of Python that the "
            "code of a graph cannot contain as a name; rename it"
        )
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
            f"the model has a part called '{name}', a name that graph modules use "
            f"themselves ({error.args[0]}); rename it"
        ) from error


def lookup(root: nn.Module, name: str) -> Any:
    """Return the parameter, buffer or module under a dotted name."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def has(root: nn.Module, name: str) -> bool:
    """Tell whether there is a parameter, buffer or module under a dotted name."""
    path, _, last = name.rpartition(".")
    for step in path.split(".") if path else ():
        root = root._modules.get(step) or nn.Module()
    return any(last in of for of in (root._parameters, root._buffers, root._modules))


def is_persistent(root: nn.Module, name: str) -> bool:
    """Tell whether the state dict contains the buffer under a dotted name."""
    path, _, last = name.rpartition(".")
    return last not in root.get_submodule(path)._non_persistent_buffers_set


def persistent_buffers(model: nn.Module) -> frozenset[int]:
    """Return the ids of all buffers that the model's state dict contains."""
    return frozenset(
        id(buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    )


def user_names(model: nn.Module) -> Mapping[int, str]:
    """Map each parameter and buffer, by its id, to the first name that the user gave it."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {id(value): user_name(name) for name, value in named}
