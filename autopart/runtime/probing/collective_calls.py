"""Calls of torch's collectives with tensors of their own."""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from functools import partial

import torch
from torch import distributed

from autopart.records.readings import Measured

ALL_GATHER: Callable[..., object] = next(
    getattr(distributed, name)
    for name in ("all_gather_single", "all_gather_into_tensor")
    if hasattr(distributed, name)
)
"""The all-gather into one tensor, which needs no copy; torch renamed it in 2.13."""
REDUCE_SCATTER: Callable[..., object] = next(
    getattr(distributed, name)
    for name in ("reduce_scatter_single", "reduce_scatter_tensor")
    if hasattr(distributed, name)
)


def call_of(
    collective: Measured,
    size: int,
    members: int,
    device: torch.device,
    group: distributed.ProcessGroup,
) -> Callable[[], object]:
    """Return a call of the collective over `size` bytes: those that each rank has in the end.

    A reduce-scatter begins with them.
    """
    each = max(1, size // 4 // members)
    result = torch.zeros(each * members, device=device)
    match collective:
        case "all_reduce":
            return partial(distributed.all_reduce, result, group=group)
        case "all_gather":
            own = torch.zeros(each, device=device)
            return partial(ALL_GATHER, result, own, group=group)
        case "reduce_scatter":
            own = torch.zeros(each, device=device)
            return partial(REDUCE_SCATTER, own, result, group=group)
        case "all_to_all":
            own = torch.zeros_like(result)
            return partial(distributed.all_to_all_single, result, own, group=group)
