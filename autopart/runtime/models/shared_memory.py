"""Parameters that share memory without being one parameter (``Parameter(other.data)``)."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from autopart.errors import ModelError

Named = tuple[str, torch.Tensor]


def check_apart(model: nn.Module, name: str) -> None:
    """Raise ModelError where a trained parameter shares elements with another parameter or buffer.

    The optimizer would step such memory once for each parameter. Stages on other ranks have copies,
    which would train apart. One parameter in several modules is no such case.
    """
    in_storage: dict[int, list[Named]] = {}
    for named in (*model.named_parameters(), *model.named_buffers()):
        if type(named[1].data) is torch.Tensor and named[1].layout is torch.strided:
            storage = named[1].untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
            in_storage.setdefault(storage, []).append(named)
    for group in in_storage.values():
        found = _first_pair(group)
        if found is not None:
            raise ModelError(
                f"{name}: '{found[0]}' and '{found[1]}' share memory, but are not one parameter, so "
                "that stages would train them apart; give both modules the same nn.Parameter"
            )


def _first_pair(group: Sequence[Named]) -> tuple[str, str] | None:
    for (one, a), (other, b) in itertools.combinations(group, 2):
        if (a.requires_grad or b.requires_grad) and _overlap(a, b):
            return one, other
    return None


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors in one storage share bytes."""
    ends = [(first, first + extent) for first, extent in map(_range, (a, b))]
    first, last = max(ends[0][0], ends[1][0]), min(ends[0][1], ends[1][1])
    if first >= last or a.dtype != b.dtype:
        return first < last
    # Views may alternate, such as the columns of one matrix: each element counts.
    taken = torch.zeros(max(end for _, end in ends) // a.element_size(), dtype=torch.bool)
    _as(taken, a).fill_(True)
    return bool(_as(taken, b).any())


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte in the storage, and bytes to the end of the last element."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    length = sum((size - 1) * stride for size, stride in steps) + 1 if tensor.numel() else 0
    return int(tensor.storage_offset()) * tensor.element_size(), length * tensor.element_size()


def _as(elements: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    return elements.as_strided(view.shape, view.stride(), view.storage_offset())
