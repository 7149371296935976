"""Inputs and outputs of each module, recorded in one real run."""

# pyright: reportPrivateUsage=false

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.checkpoints import checkpoints_left_out
from autopart.runtime.models.host_generators import HostGenerators
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.models.user_code import user_code


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One module call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    writes_inputs: bool
    """Whether the module wrote into an input tensor."""


def record_calls(model: TrainingModel, batch: Batch) -> dict[str, list[ModuleCall]]:
    """Run the model once and return each module's calls by its path in the user's model.

    Buffers and random state stay unchanged. Raises ModelError where the model itself raises.
    """
    calls: dict[str, list[ModuleCall]] = {}
    with (
        checkpoints_left_out(),
        state_restored(model),
        _recording(model, calls),
        user_code(f"{model.name}: the model"),
    ):
        model(*batch)
    return calls


@contextmanager
def _recording(model: TrainingModel, calls: dict[str, list[ModuleCall]]) -> Generator[None]:
    versions: list[list[tuple[torch.Tensor, int]]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf)]
        versions.append([(tensor, tensor._version) for tensor in tensors])

    def recorder(path: str) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            writes = any(tensor._version != version for tensor, version in versions.pop())
            calls.setdefault(path, []).append(ModuleCall(args, kwargs, output, writes))

        return after

    handles: list[Any] = []
    for name, module in model.model.named_modules():
        handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(recorder(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def state_restored(model: nn.Module) -> Generator[None]:
    """Restore buffers (objects and values) and all random states after the run."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with HostGenerators(model.modules()).restored(), torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in kept:
                    buffer.copy_(value)
                    module._buffers[name] = buffer


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)
