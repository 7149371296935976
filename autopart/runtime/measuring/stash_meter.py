"""Bytes that each stage really keeps between forwards and backwards, counted by storage.

The meter counts storages that a stage's forwards made or received from other stages. A storage
counts while autograd, the stage or the executor keeps it. Parameters, buffers, the batch, the loss
and buffers in host memory do not count. Storages that a backward makes are not seen: a split
backward may keep more between I and W.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import torch

from autopart.runtime.measuring.live_bytes import LiveStorages


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

    def take(self, stage: int, excluded: Sequence[torch.Tensor]) -> None:
        """Read the bytes that the stage keeps now, without the storages of `excluded`."""
        live = self._live[stage]
        for tensor in excluded:
            live.ignore(tensor)
        self.most_bytes[stage] = max(self.most_bytes.get(stage, 0), live.live_bytes)
