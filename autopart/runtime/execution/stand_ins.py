"""What one rank needs of a pipeline to run alone: neighbours that answer at once, and weights.

What arrives is random, of the right shapes: activations and gradients drawn anew for each message,
zeros where it is no floating number (ids, masks). What leaves is dropped. So a rank holds what its
order makes it hold, and computes what it would compute, but for operations whose cost depends on
values (a router's choice of experts).
"""

import torch
from torch import fx, nn

from autopart.runtime.execution.transfers import Transfers

_GRADIENT_SCALE = 1e-2


def _arrive(tensor: torch.Tensor, peer: int) -> None:
    if tensor.is_floating_point():
        tensor.normal_(std=_GRADIENT_SCALE)
    else:
        tensor.zero_()


def _leave(tensor: torch.Tensor, peer: int) -> None:
    pass


NEIGHBOURS = Transfers(send=_leave, receive=_arrive)


def give_weights(module: fx.GraphModule, device: torch.device) -> None:
    """Replace every meta tensor of a stage by one on `device`: matrices with the deviation that keeps
    the size of what they multiply, ones for vectors, zeros for whole numbers. Tied ones stay one."""
    made: dict[int, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            value = _drawn(torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
        return made[id(tensor)]

    for part in module.modules():
        for name, tensor in (
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        ):
            if tensor.is_meta:
                setattr(part, name, real(tensor))


def _drawn(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.zero_()
    if tensor.ndim < 2:
        return tensor.fill_(1.0)
    return tensor.normal_(std=tensor[0].numel() ** -0.5)
