"""Bytes that each stage really keeps between forwards and backwards, counted by storage.

The meter counts storages that a stage's forwards made or received from other stages. A storage
counts while autograd or the stage keeps it. Results that only wait to be sent, parameters, buffers,
the batch, the loss and buffers in host memory do not count. Storages that a backward makes are not seen: a split
backward may keep more between I and W.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import torch

from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.measuring.saved_tensors import storage_key


class StashMeter:
    """Measures stashes on one rank while its forwards run inside `forward`."""

    def __init__(self) -> None:
        self._live: dict[int, LiveStorages] = {}
        self.most_bytes: dict[int, int] = {}
        """Most bytes that all microbatches in flight kept together, by stage."""

    @contextmanager
    def forward(
        self, stage: int, received: Sequence[torch.Tensor], existing: Iterable[torch.Tensor]
    ) -> Generator[None]:
        """Watch one forward of `stage`, which takes `received` from another stage.

        `existing` are parameters, buffers and the batch's tensors, which do not count.
        """
        live = self._live.setdefault(stage, LiveStorages())
        for tensor in existing:
            live.ignore(tensor)
        for tensor in received:
            live.count(tensor)
        with live:
            yield

    def came_back(self, stage: int, tensors: Iterable[torch.Tensor]) -> None:
        """Count stash of `stage` that was in another rank's memory."""
        for tensor in tensors:
            self._live[stage].count(tensor)

    def take(self, stage: int, results: Sequence[torch.Tensor], *, is_last: bool) -> None:
        """Read the bytes that the stage keeps now, right after a forward returned its `results`.

        The last stage's result is the loss.
        """
        live = self._live[stage]
        for tensor in results if is_last else _only_here(results):
            live.ignore(tensor)
        self.most_bytes[stage] = max(self.most_bytes.get(stage, 0), live.live_bytes)


def _only_here(results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The results whose storage nothing else keeps: no autograd graph and no stage."""
    here = Counter(storage_key(tensor) for tensor in results)
    return [tensor for tensor in results if _references(tensor) == here[storage_key(tensor)]]


def _references(tensor: torch.Tensor) -> int:
    """Tensors that keep a tensor's storage alive, itself included."""
    storage = tensor.untyped_storage()
    count: int = torch._C._storage_Use_Count(storage._cdata)  # pyright: ignore
    return count - 1  # The Python object of the storage is one more.
