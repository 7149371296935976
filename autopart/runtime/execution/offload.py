"""What a layer keeps for its backward, in host memory instead of the device's.

While the layer runs, saved tensors are noted; behind it every storage below them is copied to the
host once and let go, however many saved tensors share it. Storages stay where others hold them
anyway: parameters and all else that the layer takes, and what it gives. In backward a storage comes
back when the first tensor in it is needed.

On a GPU the copy out runs on a stream of its own, into pinned memory, beside the computation; the
copy back is started on the computing stream, which waits for it.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from autopart.runtime.profiling.stash import storage_key

_MIN_BYTES = 1 << 10
"""Smaller storages are not worth a copy."""


class Offload:
    """A context around one forward of a layer."""

    def __init__(self, taken: Sequence[torch.Tensor]) -> None:
        """`taken` are the layer's inputs, its parameters included."""
        # Alive until the layer is done, so that no other storage can take over a key.
        self._taken = list(taken)
        self._staying = {storage_key(tensor) for tensor in self._taken}
        self._stashes: dict[int, _Stash] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def move_out(self, given: Any) -> int:
        """Copy what was saved to the host, but for storages of `given`, the layer's outputs, and
        let it go; gives the bytes that left. To be called once, behind the context."""
        leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        staying = {storage_key(tensor) for tensor in leaves}
        moved = 0
        for key, stash in self._stashes.items():
            if key not in staying:
                moved += stash.move_out()
        self._stashes.clear()
        self._taken.clear()
        return moved

    def _pack(self, tensor: torch.Tensor) -> Any:
        key = storage_key(tensor)
        is_small = tensor.untyped_storage().nbytes() < _MIN_BYTES
        if is_small or key in self._staying or tensor.layout != torch.strided:
            return tensor.detach()  # An output that its own operation saves must not hold itself.
        stash = self._stashes.get(key)
        if stash is None:
            stash = self._stashes[key] = _Stash(tensor)
        return _Place(stash, tensor)


class _Stash:
    """One storage, on the device or on the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device_bytes: torch.Tensor | None = _bytes_of(tensor)
        self._host_bytes: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._device = tensor.device

    def move_out(self) -> int:
        source = self._device_bytes
        assert source is not None
        on_gpu = source.device.type == "cuda"
        self._host_bytes = torch.empty(source.shape, dtype=torch.uint8, pin_memory=on_gpu)
        if on_gpu:
            stream = _copy_stream(source.device)
            stream.wait_stream(torch.cuda.current_stream(source.device))
            with torch.cuda.stream(stream):
                self._host_bytes.copy_(source, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record(stream)
            source.record_stream(stream)  # Its memory must not be used again before the copy.
        else:
            self._host_bytes.copy_(source)
        self._device_bytes = None
        return self._host_bytes.nbytes

    def storage(self) -> torch.UntypedStorage:
        """The storage on the device; comes back at the first call."""
        if self._device_bytes is None:
            assert self._host_bytes is not None
            if self._copied is not None:
                torch.cuda.current_stream(self._device).wait_event(self._copied)
            self._device_bytes = torch.empty_like(self._host_bytes, device=self._device)
            self._device_bytes.copy_(self._host_bytes, non_blocking=True)
            self._host_bytes = None
        return self._device_bytes.untyped_storage()


class _Place:
    """Where in a storage a saved tensor lies."""

    def __init__(self, stash: _Stash, tensor: torch.Tensor) -> None:
        self._stash = stash
        self._dtype = tensor.dtype
        self._device = tensor.device
        self._layout = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()

    def tensor(self) -> torch.Tensor:
        empty = torch.empty(0, dtype=self._dtype, device=self._device)
        return empty.set_(self._stash.storage(), *self._layout)


def _unpack(packed: Any) -> Any:
    return packed.tensor() if isinstance(packed, _Place) else packed


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage below the tensor."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage())


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
