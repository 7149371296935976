"""Activation offload: a layer's stash waits in host memory between forward and backward.

Autograd's hooks for saved tensors show each tensor that a layer saves. After the layer's forward,
each storage under these tensors is copied to the host once, even if many saved tensors share it.
Parameters, other layer inputs and layer outputs stay on the device, since others keep them alive.

At most one layer is copied in each direction at a time. The cost model makes the same assumption.

    forward    After an offloaded layer, its copy to the host starts and the stage continues. The
               copy must be complete after the next offloaded layer, or when the forward ends.
    backward   The stash that is needed first starts its copy back when the backward starts. When a
               layer's backward starts, its stash must be back, and the next offloaded layer in
               backward order starts its copy.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from autopart.runtime.measuring.saved_tensors import storage_key
from autopart.runtime.transforms.host_copies import HostCopies, PendingCopies
from autopart.runtime.transforms.saved_storages import (
    SavedStorage,
    SavedTensor,
    storage_as_bytes,
    unpack,
)


class HostStash:
    """One stage's offloaded stashes, for all microbatches in flight."""

    def __init__(self, copies: HostCopies) -> None:
        self.copies = copies
        self._of_microbatch: dict[int, list[LayerStash]] = {}
        self._current: list[LayerStash] = []
        """The running microbatch's stashes. In forward: all so far. In backward: all not yet
        back."""

    @contextmanager
    def forward(self, microbatch: int) -> Generator[None]:
        """Surround one microbatch's forward on the stage."""
        self._current = self._of_microbatch[microbatch] = []
        yield
        if self._current:
            self._current[-1].finish_offload()

    @contextmanager
    def backward(self, microbatch: int) -> Generator[None]:
        """Surround one microbatch's whole backward, or its input-gradient half I."""
        self._current = self._of_microbatch.pop(microbatch)
        self._start_next_fetch()
        yield
        for stash in self._current:  # No operation of the backward asked for these.
            stash.finish_fetch()
        self._current = []

    def offload(self, stash: "LayerStash") -> None:
        """Start to copy a stash to the host. Called after the layer's forward."""
        if self._current:
            self._current[-1].finish_offload()
        stash.start_offload()
        self._current.append(stash)

    def fetch(self, stash: "LayerStash") -> None:
        """Bring a stash back to the device. Called when the layer's backward starts."""
        stash.finish_fetch()
        if stash in self._current:
            self._current.remove(stash)
        self._start_next_fetch()

    def _start_next_fetch(self) -> None:
        if self._current:
            self._current[-1].start_fetch()


class LayerStash:
    """One layer's stash for one microbatch; a context around the layer's forward records it."""

    def __init__(self, inputs: Sequence[torch.Tensor], host: HostStash) -> None:
        """`inputs` are all tensors that the layer takes, its parameters included."""
        # Keys name storages by address. While the inputs live, no other storage can get their key.
        self._inputs = list(inputs)
        self._staying = {storage_key(tensor) for tensor in self._inputs}
        self._device = self._inputs[0].device
        self._host = host
        self._saved: dict[int, SavedStorage] = {}
        self._offloaded: tuple[SavedStorage, ...] = ()
        """Storages on the host, or in a copy to or from it."""
        self._to_host: PendingCopies | None = None
        self._to_device: PendingCopies | None = None
        self._hooks = saved_tensors_hooks(self._pack, unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def offload(self, outputs: Any) -> int:
        """Send the saved storages to the host, except storages under the layer's `outputs`.

        Call it once, after the context. Returns the bytes sent.
        """
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        staying = {storage_key(tensor) for tensor in leaves}
        self._offloaded = tuple(saved for key, saved in self._saved.items() if key not in staying)
        self._inputs.clear()
        self._saved.clear()
        if self._offloaded:
            self._host.offload(self)
        return sum(saved.data.nbytes for saved in self._offloaded)

    def start_offload(self) -> None:
        """Start the copy to the host."""
        self._to_host = self._host.copies.to_host([saved.data for saved in self._offloaded])

    def finish_offload(self) -> None:
        """Wait for the copy to the host, then free the memory on the device."""
        if self._to_host is not None:
            self._to_host.wait()
            for saved, copy in zip(self._offloaded, self._to_host.copies, strict=True):
                saved.data = copy
            self._to_host = None

    def start_fetch(self) -> None:
        """Start the copy back to the device, unless it was started before."""
        self.finish_offload()
        if self._to_device is None:
            self._to_device = self._host.copies.to_device([saved.data for saved in self._offloaded])

    def finish_fetch(self) -> None:
        """Wait for the copy back to the device, then free the host buffers."""
        if not self._offloaded:
            return
        self.start_fetch()
        assert self._to_device is not None
        self._to_device.wait()
        self._host.copies.free([saved.data for saved in self._offloaded])
        for saved, copy in zip(self._offloaded, self._to_device.copies, strict=True):
            saved.data = copy
        self._offloaded, self._to_device = (), None

    def require(self) -> None:
        """Make the stash present: the layer's backward reads a saved tensor."""
        if self._offloaded:
            self._host.fetch(self)

    def _pack(self, tensor: torch.Tensor) -> Any:
        key = storage_key(tensor)
        stays = key in self._staying or tensor.device != self._device
        if stays or tensor.layout != torch.strided:
            # An operation may save its own output. Without detach the output would keep itself
            # alive.
            return tensor.detach()
        if key not in self._saved:
            self._saved[key] = SavedStorage(storage_as_bytes(tensor))
        return _SavedTensor(self, self._saved[key], tensor)


class _SavedTensor(SavedTensor):
    """A saved tensor whose stash must be back before it is read."""

    def __init__(self, stash: LayerStash, saved: SavedStorage, tensor: torch.Tensor) -> None:
        super().__init__(saved, tensor)
        self._stash = stash

    def tensor(self) -> torch.Tensor:
        """The tensor, on the device."""
        self._stash.require()
        return super().tensor()
