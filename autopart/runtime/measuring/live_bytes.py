"""Bytes in live tensors, counted operation by operation.

The count sees the results that operations return. It does not see scratch memory inside one kernel
(im2col buffers, matmul workspaces). On a GPU the allocator's own peak is read as well.
"""

import weakref
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.measuring.saved_tensors import storage_key

RESIZE = torch.ops.inductor.resize_storage_bytes_.default
"""The operation that gives memory to a storage, or takes it."""


class LiveStorages(TorchDispatchMode):
    """A context that counts the bytes in storages made inside it, as they come and go.

    It works on real and on meta tensors: a meta storage has a size though it has no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self._peak_bytes = 0
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    def reset_peak(self) -> None:
        """Restart the peak from the bytes that are alive now."""
        self._peak_bytes = self.live_bytes

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were alive at once since the last reset."""
        return self._peak_bytes

    def count(self, tensor: torch.Tensor) -> None:
        """Count, from now on, a storage that was made outside the context."""
        self._watch(tensor, size=tensor.untyped_storage().nbytes())

    def ignore(self, tensor: torch.Tensor) -> None:
        """Exclude the tensor's storage from the count: a parameter, a buffer or an input."""
        self._watch(tensor, size=0)
        key = storage_key(tensor)
        self.live_bytes -= self._sizes[key]
        self._sizes[key] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is RESIZE:
            self._resized(args[0])
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        self._peak_bytes = max(self._peak_bytes, self.live_bytes)
        return result

    def _resized(self, tensor: torch.Tensor) -> None:
        self._watch(tensor, size=0)
        key, size = storage_key(tensor), tensor.untyped_storage().nbytes()
        self.live_bytes += size - self._sizes[key]
        self._sizes[key] = size

    def _watch(self, tensor: torch.Tensor, size: int) -> None:
        key = storage_key(tensor)
        if key in self._references:
            return

        def forget(_: object) -> None:
            self.live_bytes -= self._sizes.pop(key)
            del self._references[key]

        # The Python object of a storage lives exactly as long as the storage itself.
        self._references[key] = weakref.ref(tensor.untyped_storage(), forget)
        self._sizes[key] = size
        self.live_bytes += size
