"""Copies between a device and its host's memory; host buffers are reused.

Starting a copy and waiting for it are two calls. On a CPU the device's memory is the host's memory,
so a copy is complete when its start returns. On a GPU each direction has its own CUDA stream.
Waiting then makes the computing stream wait for the copy; the CPU thread continues.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import _disable_current_modes

Tensors = Sequence[torch.Tensor]


class PendingCopies:
    """Copies that were started together."""

    def __init__(self, copies: Tensors) -> None:
        self.copies = tuple(copies)
        """Target tensors; their bytes are complete after `wait`."""

    def wait(self) -> None:
        """Order all later computation after these copies."""


class HostCopies:
    """Copies on a CPU, complete when they are started."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        """All host buffers ever allocated, free ones included; byte tensors."""
        self._free: dict[int, list[torch.Tensor]] = {}

    def to_host(self, tensors: Tensors) -> PendingCopies:
        """Start to copy byte tensors into host buffers. Keep `tensors` alive until the wait."""
        # Meters of device memory watch tensors through dispatch modes. On a CPU they would count
        # these buffers too, so the modes are off here.
        with _disable_current_modes():
            buffers = [self._buffer(tensor.nbytes) for tensor in tensors]
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor)
        return PendingCopies(buffers)

    def to_device(self, tensors: Tensors) -> PendingCopies:
        """Start to copy host buffers into new device memory."""
        return PendingCopies([tensor.clone() for tensor in tensors])

    def free(self, tensors: Tensors) -> None:
        """Take back buffers that `to_host` filled, once every copy from them is complete."""
        for tensor in tensors:
            self._free.setdefault(tensor.nbytes, []).append(tensor)

    def _buffer(self, size: int) -> torch.Tensor:
        if spare := self._free.get(size):
            return spare.pop()
        self.buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pins()))
        return self.buffers[-1]

    def _pins(self) -> bool:
        return False


class StreamCopies(HostCopies):
    """Copies between a GPU and pinned host memory, on two streams beside the computing one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._to_host_stream = torch.cuda.Stream(device)
        self._to_device_stream = torch.cuda.Stream(device)

    def to_host(self, tensors: Tensors) -> PendingCopies:
        buffers = [self._buffer(tensor.nbytes) for tensor in tensors]
        return self._copy(buffers, tensors, self._to_host_stream)

    def to_device(self, tensors: Tensors) -> PendingCopies:
        targets = [torch.empty_like(tensor, device=self._device) for tensor in tensors]
        return self._copy(targets, tensors, self._to_device_stream)

    def _copy(self, targets: Tensors, sources: Tensors, stream: torch.cuda.Stream) -> PendingCopies:
        # The sources must be computed, and earlier readers of the targets must be done.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        return _PendingOnStream(targets, done, self._device)

    def _pins(self) -> bool:
        return True


class _PendingOnStream(PendingCopies):
    """Copies on a stream, followed there by the event `done`."""

    def __init__(self, copies: Tensors, done: torch.cuda.Event, device: torch.device) -> None:
        super().__init__(copies)
        self._done, self._device = done, device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._done)


def host_copies_for(device: torch.device) -> HostCopies:
    """Copies for ranks that compute on `device`: on streams for a GPU, else plain."""
    return StreamCopies(device) if device.type == "cuda" else HostCopies()
