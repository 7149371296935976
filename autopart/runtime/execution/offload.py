"""What layers keep for their backward, in the host's memory instead of the device's.

While a layer runs, saved tensors are noted; behind it every storage below them leaves for the host
once, however many saved tensors share it. Storages stay where others hold them anyway: parameters
and all else that the layer takes, and what it gives.

One layer is in transit each way, as the cost model has it:

    forward    when an offloaded layer has run, its stash starts to leave, and the stage goes on; when
               the next one has run, or the forward ends, the former must be out
    backward   the stash needed first starts to come back when the backward starts; when a layer's
               backward starts, its own must be there, and that of the offloaded layer ahead of it
               starts to come
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from autopart.runtime.execution.host_link import HostLink, Transit
from autopart.runtime.profiling.stash import storage_key


class HostStash:
    """The stashes of one stage that are on the host, or on their way."""

    def __init__(self, link: HostLink) -> None:
        self.link = link
        self._of_microbatch: dict[int, list[LayerStash]] = {}
        self._here: list[LayerStash] = []
        """In forward those of the running microbatch; in backward those that have not come back."""

    @contextmanager
    def forward(self, microbatch: int) -> Generator[None]:
        """Around the forward of one microbatch on the stage."""
        self._here = self._of_microbatch[microbatch] = []
        yield
        if self._here:
            self._here[-1].be_out()

    @contextmanager
    def backward(self, microbatch: int) -> Generator[None]:
        """Around its backward, or the half of it that gives the gradient of the input."""
        self._here = self._of_microbatch.pop(microbatch)
        self._call_next()
        yield
        for stash in self._here:  # What no operation has asked for.
            stash.be_back()
        self._here = []

    def leave(self, stash: "LayerStash") -> None:
        """Called when the layer has run."""
        if self._here:
            self._here[-1].be_out()
        stash.go()
        self._here.append(stash)

    def come(self, stash: "LayerStash") -> None:
        """Called when the layer's backward starts."""
        stash.be_back()
        if stash in self._here:
            self._here.remove(stash)
        self._call_next()

    def _call_next(self) -> None:
        if self._here:
            self._here[-1].come()


class LayerStash:
    """What one layer keeps of one microbatch: a context around its forward notes it."""

    def __init__(self, taken: Sequence[torch.Tensor], host: HostStash) -> None:
        """`taken` are the layer's inputs, its parameters included."""
        # Alive until the layer is done, so that no other storage can take over a key.
        self._taken = list(taken)
        self._staying = {storage_key(tensor) for tensor in self._taken}
        self._device = self._taken[0].device
        self._host = host
        self._saved: dict[int, _Saved] = {}
        self._away: tuple[_Saved, ...] = ()
        """What has left, or is leaving."""
        self._out: Transit | None = None
        self._back: Transit | None = None
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def leave(self, given: Any) -> int:
        """Let what was saved go to the host, but for the storages of `given`, the layer's outputs;
        gives the bytes that leave. To be called once, behind the context."""
        leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        staying = {storage_key(tensor) for tensor in leaves}
        self._away = tuple(saved for key, saved in self._saved.items() if key not in staying)
        self._taken.clear()
        self._saved.clear()
        if self._away:
            self._host.leave(self)
        return sum(saved.held.nbytes for saved in self._away)

    def go(self) -> None:
        """Start to leave."""
        self._out = self._host.link.out([saved.held for saved in self._away])

    def be_out(self) -> None:
        """Wait until it has left, and let go of it on the device."""
        if self._out is not None:
            self._out.wait()
            for saved, copy in zip(self._away, self._out.copies, strict=True):
                saved.held = copy
            self._out = None

    def come(self) -> None:
        """Start to come back, if it has left."""
        self.be_out()
        if self._back is None:
            self._back = self._host.link.back([saved.held for saved in self._away])

    def be_back(self) -> None:
        """Wait until it is back, and let its room on the host be used again."""
        if not self._away:
            return
        self.come()
        assert self._back is not None
        self._back.wait()
        self._host.link.free([saved.held for saved in self._away])
        for saved, copy in zip(self._away, self._back.copies, strict=True):
            saved.held = copy
        self._away, self._back = (), None

    def need(self) -> None:
        """Be there: an operation of the layer's backward asks for a saved tensor."""
        if self._away:
            self._host.come(self)

    def _pack(self, tensor: torch.Tensor) -> Any:
        key = storage_key(tensor)
        stays = key in self._staying or tensor.device != self._device
        if stays or tensor.layout != torch.strided:
            return tensor.detach()  # An output that its own operation saves must not hold itself.
        if key not in self._saved:
            self._saved[key] = _Saved(_bytes_of(tensor))
        return _Place(self, self._saved[key], tensor)


class _Saved:
    """One storage: on the device, or its copy on the host."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held


class _Place:
    """Where in a storage a saved tensor lies."""

    def __init__(self, stash: LayerStash, saved: _Saved, tensor: torch.Tensor) -> None:
        self._stash = stash
        self._saved = saved
        self._dtype = tensor.dtype
        self._layout = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()

    def tensor(self) -> torch.Tensor:
        self._stash.need()
        held = self._saved.held
        empty = torch.empty(0, dtype=self._dtype, device=held.device)
        return empty.set_(held.untyped_storage(), *self._layout)


def _unpack(packed: Any) -> Any:
    return packed.tensor() if isinstance(packed, _Place) else packed


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage below the tensor."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage())
