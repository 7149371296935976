"""Bytes that autograd keeps from forward to backward, counted by storage.

Autograd saves tensors, but the storages below them occupy the memory. Views share a storage, and
several operations save the same input. A sum over saved tensors therefore counts up to several
times too much. Here each storage counts once, with its whole size, and only while it is alive.

Tensors that a user's autograd function keeps outside of `save_for_backward` are not seen.
"""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


def storage_key(tensor: torch.Tensor) -> int:
    """Return a key that no other live storage shares."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def storage_bytes(tensor: torch.Tensor) -> int:
    """Return the whole storage's size below the tensor, in bytes."""
    return tensor.untyped_storage().nbytes()


def storage_keys(tensors: Iterable[torch.Tensor]) -> frozenset[int]:
    """Return the keys of the storages below `tensors`, valid while the tensors live."""
    return frozenset(storage_key(tensor) for tensor in tensors)


class SavedStorages:
    """A context that notes the storages that autograd saves inside it, without keeping them alive.

    A weak reference to each storage also prevents that its key is reused.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def kept(self) -> dict[int, int]:
        """Map each saved storage that is still alive, by its key, to its bytes."""
        return {key: size for key, (storage, size) in self._seen.items() if not storage.expired()}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        key = storage_key(tensor)
        if key not in self._seen:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._seen[key] = (reference, storage_bytes(tensor))
        # An operation that saves its own output would keep it alive for ever. Its alias does not.
        return tensor.detach()


def _unpack(tensor: Any) -> Any:
    return tensor
