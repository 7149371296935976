"""One microbatch's stash on a stage, which can leave the rank's memory and come back before its backward.

Autograd's hooks for saved tensors show each tensor that the stage's forward saves. Each storage under
them counts once. Tensors that the stage itself keeps until the backward join them: those that it
received, and its held outputs. Parameters, buffers and the batch stay, since others keep them.
"""

import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks

from autopart.runtime.measuring.saved_tensors import storage_bytes, storage_key, storage_keys
from autopart.runtime.transforms.saved_storages import (
    SavedStorage,
    SavedTensor,
    storage_as_bytes,
    unpack,
)


class MovableStash:
    """A context around the forward records the stash; then `leave` and `come_back` move it."""

    def __init__(self, staying: Iterable[torch.Tensor], device: torch.device) -> None:
        """`staying` are tensors that live through the whole step."""
        self._staying = storage_keys(staying)
        self._device = device
        # Autograd frees a saved tensor that no backward can need. So this class keeps none alive.
        self._saved: dict[int, weakref.ref[SavedStorage]] = {}
        self._kept: list[tuple[torch.Tensor, SavedTensor]] = []
        self._moved: list[SavedStorage] = []
        self._hooks = saved_tensors_hooks(self._pack, unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Add tensors that the stage keeps from forward to backward. They must keep their place.

        Call it after the context.
        """
        for tensor in tensors:
            packed = self._pack(tensor)
            if isinstance(packed, SavedTensor):
                self._kept.append((tensor, packed))

    def bytes_to_send(self) -> tuple[torch.Tensor, ...]:
        """The bytes of each storage, in one order. They still belong to the stash."""
        found = (saved() for saved in self._saved.values())
        self._moved = [saved for saved in found if saved is not None]
        self._saved.clear()
        return tuple(saved.data for saved in self._moved)

    def leave(self) -> None:
        """Free the bytes on this rank, once they are sent."""
        nothing = torch.empty(0, dtype=torch.uint8, device=self._device)
        for saved in self._moved:
            saved.data = nothing
        for tensor, _ in self._kept:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=self._device)

    def come_back(self) -> tuple[torch.Tensor, ...]:
        """Make room for the bytes in the order in which they left; returns it, to be filled."""
        for saved in self._moved:
            saved.data = torch.empty(saved.size, dtype=torch.uint8, device=self._device)
        for tensor, packed in self._kept:
            tensor.data = packed.tensor()
        room = tuple(saved.data for saved in self._moved)
        # From here on only autograd and the stage keep the stash: the backward frees it as it goes.
        self._moved.clear()
        self._kept.clear()
        return room

    def _pack(self, tensor: torch.Tensor) -> Any:
        key = storage_key(tensor)
        stays = key in self._staying or tensor.device != self._device
        if stays or tensor.layout != torch.strided or not storage_bytes(tensor):
            # An operation that saves its own output would keep it alive for ever. Its alias does not.
            return tensor.detach()
        known = self._saved.get(key)
        saved = None if known is None else known()
        if saved is None:
            saved = SavedStorage(storage_as_bytes(tensor))
            self._saved[key] = weakref.ref(saved)
        return SavedTensor(saved, tensor)
