"""The way between a device and its host's memory: copies, and buffers that are used again.

A copy is started and waited for apart. On a CPU device and host are the same memory, and a copy is
done when it has been started. On a GPU each direction has a stream of its own, and to wait means that
the computing stream goes no further before the copy is done; the host itself does not wait.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import _disable_current_modes

Tensors = Sequence[torch.Tensor]


class Transit:
    """Copies under way."""

    def __init__(self, copies: Tensors) -> None:
        self.copies = tuple(copies)
        """Whole once `wait` has been called."""

    def wait(self) -> None:
        """Let nothing further be computed before the copies are whole."""


class HostLink:
    """Copies that are done when they have been started, as on a CPU."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        """All that were ever made in the host's memory."""
        self._free: dict[int, list[torch.Tensor]] = {}

    def out(self, tensors: Tensors) -> Transit:
        """Start to copy contiguous bytes into the host's memory; they must live until it is done."""
        # Whoever counts the tensors of a device that is a CPU must not find those of its host among them.
        with _disable_current_modes():
            rooms = [self._room(tensor.nbytes) for tensor in tensors]
            for room, tensor in zip(rooms, tensors, strict=True):
                room.copy_(tensor)
        return Transit(rooms)

    def back(self, tensors: Tensors) -> Transit:
        """Start to copy bytes from the host's memory into fresh room on the device."""
        return Transit([tensor.clone() for tensor in tensors])

    def free(self, tensors: Tensors) -> None:
        """Let buffers that `out` has filled be used again, once what was copied from them is whole."""
        for tensor in tensors:
            self._free.setdefault(tensor.nbytes, []).append(tensor)

    def _room(self, size: int) -> torch.Tensor:
        if spare := self._free.get(size):
            return spare.pop()
        self.buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pins()))
        return self.buffers[-1]

    def _pins(self) -> bool:
        return False


class StreamLink(HostLink):
    """Copies between a GPU and pinned memory of its host, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._outward, self._homeward = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def out(self, tensors: Tensors) -> Transit:
        rooms = [self._room(tensor.nbytes) for tensor in tensors]
        return self._copied(rooms, tensors, self._outward)

    def back(self, tensors: Tensors) -> Transit:
        rooms = [torch.empty_like(tensor, device=self._device) for tensor in tensors]
        return self._copied(rooms, tensors, self._homeward)

    def _copied(self, rooms: Tensors, tensors: Tensors, stream: torch.cuda.Stream) -> Transit:
        # What is copied must have been computed, and nothing may still read what the room held before.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for room, tensor in zip(rooms, tensors, strict=True):
                room.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        return _StreamTransit(rooms, done, self._device)

    def _pins(self) -> bool:
        return True


class _StreamTransit(Transit):
    """Copies behind which a stream has recorded an event."""

    def __init__(self, copies: Tensors, done: torch.cuda.Event, device: torch.device) -> None:
        super().__init__(copies)
        self._done, self._device = done, device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._done)


def host_link(device: torch.device) -> HostLink:
    """The link of a rank that computes on `device`."""
    return StreamLink(device) if device.type == "cuda" else HostLink()
