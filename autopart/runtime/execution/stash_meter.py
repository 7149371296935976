"""The bytes that each stage really keeps between forwards and backwards, counted by storage.

Counted are the storages that a stage's forwards have made or were handed by other stages, as long as
anything holds them: autograd, the stage, the executor. Parameters, buffers and the batch are not made
there, the loss itself is not counted, and neither are buffers in the host's memory. What a backward
makes is not seen: between the halves of a split backward more may be held.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import torch

from autopart.runtime.profiling.liveness import LiveStorages


class StashMeter:
    """The stashes of one rank's stages, for as long as its forwards are watched."""

    def __init__(self) -> None:
        self._live: dict[int, LiveStorages] = {}
        self.most_bytes: dict[int, int] = {}
        """By stage, the most that all its microbatches in flight kept together."""

    @contextmanager
    def forward(
        self, stage: int, received: Sequence[torch.Tensor], there: Iterable[torch.Tensor]
    ) -> Generator[None]:
        """Around a forward of `stage`, which takes `received` from another one; `there` are parameters,
        buffers and the batch's tensors."""
        live = self._live.setdefault(stage, LiveStorages())
        for tensor in there:
            live.ignore(tensor)
        for tensor in received:
            live.count(tensor)
        with live:
            yield

    def take(self, stage: int, apart: Sequence[torch.Tensor]) -> None:
        """Read what the stage keeps now, but for the storages `apart`."""
        live = self._live[stage]
        for tensor in apart:
            live.ignore(tensor)
        self.most_bytes[stage] = max(self.most_bytes.get(stage, 0), live.live_bytes)
