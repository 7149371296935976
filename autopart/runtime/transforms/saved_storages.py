"""Tensors that autograd saves, as views of storages whose bytes may lie elsewhere for a while."""

from typing import Any

import torch


class SavedStorage:
    """One storage's bytes: on the device, in a copy elsewhere, or sent away."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.size = data.nbytes


class SavedTensor:
    """A saved tensor's position, shape, strides and dtype within its storage."""

    def __init__(self, saved: SavedStorage, tensor: torch.Tensor) -> None:
        self._saved = saved
        self._dtype = tensor.dtype
        self._layout = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()

    def tensor(self) -> torch.Tensor:
        """The tensor, over its storage's present bytes."""
        data = self._saved.data
        empty = torch.empty(0, dtype=self._dtype, device=data.device)
        return empty.set_(data.untyped_storage(), *self._layout)


def unpack(packed: Any) -> Any:
    """Autograd's hook for a saved tensor that is read."""
    return packed.tensor() if isinstance(packed, SavedTensor) else packed


def storage_as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's whole storage as a byte tensor."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage())
