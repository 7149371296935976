"""One module exported alone, and the reasons why code cannot be captured."""

# pyright: reportPrivateUsage=false

import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_recorder import ModuleCall
from autopart.runtime.capture.torch_export import (
    UncapturableError,
    export_surroundings,
    refuse_objects,
)
from autopart.runtime.models.user_code import describe_error, error_place, shown_path

_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
)
_LONGEST_REASON = 160


class _RecordedCall(nn.Module):
    """One recorded call as a module whose inputs and outputs are all tensors."""

    def __init__(self, module: nn.Module, call: ModuleCall) -> None:
        super().__init__()
        self.module = module
        leaves, self._structure = pytree.tree_flatten((call.args, call.kwargs))
        self._constants = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        self.tensors = tuple(
            x.detach().requires_grad_(x.requires_grad)
            for x in leaves
            if isinstance(x, torch.Tensor)
        )

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        given = (tensor.clone() for tensor in tensors)  # in-place operations refuse leaves
        leaves = [next(given) if c is None else copy.copy(c[0]) for c in self._constants]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        output = self.module(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def why_not_alone(module: nn.Module, call: ModuleCall) -> str | None:
    """Return the reason why one recorded call cannot be exported alone; None where it can."""
    alone = _RecordedCall(module, call)
    try:
        with export_surroundings(alone):
            refuse_objects(torch.export.export(alone, alone.tensors, strict=False))
    except Exception as error:  # the exporter runs the user's code, which may raise anything
        return reason_of(error)
    return None


def reason_of(error: Exception) -> str:
    """Return an error on one line, with the user's own line."""
    if isinstance(error, UncapturableError):
        text = str(error)
    elif type(error).__name__ in _DATA_DEPENDENT or "data-dependent" in str(error):
        text = "its control flow depends on the values of tensors"
    else:
        text = describe_error(error)
        text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"
    place = error_place(error)
    return f"{text} ({place})" if place else text


def hook_of(module: nn.Module) -> str | None:
    """Return the reason why a module with a backward hook runs unchanged; None without a hook."""
    for hook in (*module._backward_hooks.values(), *module._backward_pre_hooks.values()):
        code = getattr(hook, "__code__", None)
        place = f" ({shown_path(code.co_filename)}:{code.co_firstlineno})" if code else ""
        return f"it has a backward hook{place}"
    return None
