"""A rank's tensors under their names in the original model."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.stage import stage_buffers, stage_parameters
from autopart.runtime.models.attributes import attach, persistent_buffers, user_name
from autopart.runtime.models.model import TrainingModel

Names = Mapping[str, tuple[str, ...]]
"""Maps each saved tensor's first name to all its names, in the model's order."""


def all_names(model: TrainingModel) -> Names:
    """All names of parameters and persistent buffers, as in the model's state dict."""
    kept = persistent_buffers(model)
    named = [
        *model.named_parameters(remove_duplicate=False),
        *(of for of in model.named_buffers(remove_duplicate=False) if id(of[1]) in kept),
    ]
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in named:
        by_tensor.setdefault(id(tensor), []).append(user_name(name))
    return {names[0]: tuple(names) for names in by_tensor.values()}


def named_module(names: Names, programs: Sequence[StageProgram]) -> nn.Module:
    """A module whose state dict has the stages' tensors, each under all its names."""
    tensors: dict[str, torch.Tensor] = {}
    for program in programs:
        tensors |= stage_parameters(program) | stage_buffers(program)
    module = nn.Module()
    for first, every in names.items():
        for name in every if first in tensors else ():
            attach(module, name, tensors[first])
    return module
