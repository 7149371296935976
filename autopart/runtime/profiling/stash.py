"""What autograd keeps from forward to backward, by storage.

Autograd saves tensors; memory is held by the storages below them. Many saved tensors share a
storage (views, the same input saved by several operations), so a sum over saved tensors counts up
to several times too much. Here each storage counts once, with its whole size, and only while
something really holds it.

Tensors that an autograd function of the user's keeps outside `save_for_backward` are not seen.
"""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


def storage_key(tensor: torch.Tensor) -> int:
    """What tells the tensor's storage from every other one that is alive."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def storage_bytes(tensor: torch.Tensor) -> int:
    """The size of the whole storage below the tensor."""
    return tensor.untyped_storage().nbytes()


def storage_keys(tensors: Iterable[torch.Tensor]) -> frozenset[int]:
    """The storages below `tensors`; valid as long as the tensors live."""
    return frozenset(storage_key(tensor) for tensor in tensors)


class SavedStorages:
    """A context: the storages that autograd saves inside it, without keeping them alive.

    A storage is held by a weak reference, which also keeps its key from being used again.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def held(self) -> dict[int, int]:
        """Bytes by storage, of those that somebody still holds."""
        return {key: size for key, (storage, size) in self._seen.items() if not storage.expired()}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        key = storage_key(tensor)
        if key not in self._seen:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._seen[key] = (reference, storage_bytes(tensor))
        # An output that its own operation saves would hold itself alive; its alias does not.
        return tensor.detach()


def _unpack(tensor: Any) -> Any:
    return tensor
