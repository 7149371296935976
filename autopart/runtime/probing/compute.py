"""How much ranks of a node slow each other down when they compute at the same time."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.profiling.timing import HostStopwatch, Stopwatch, stopwatch_of

_SECONDS = 0.6
"""Of computing alone, and again with the others."""
_WIDTH, _TOKENS = 256, 1024
_COPIED = 16 << 20
"""Bytes; more than a core's caches hold."""


class Block:
    """The multilayer perceptron of a transformer's block: 3.2 GFLOP forward and backward."""

    def __init__(self, device: torch.device) -> None:
        layers = (
            nn.LayerNorm(_WIDTH),
            nn.Linear(_WIDTH, 4 * _WIDTH),
            nn.GELU(),
            nn.Linear(4 * _WIDTH, _WIDTH),
        )
        self._layers = nn.Sequential(*layers).to(device)
        self._rows = torch.randn(_TOKENS, _WIDTH, device=device)

    def run(self) -> None:
        """One forward and backward."""
        self._layers(self._rows).sum().backward()


def measure_slowdown(ranks: Ranks) -> tuple[float, float]:
    """The time of a block, and of an addition that is all memory traffic, with all ranks of the node
    over alone; on the rank that suffers most. Every rank must call this."""
    tensor = torch.ones(_COPIED // 4, device=ranks.device)
    stopwatch = _stopwatch(ranks)
    of_block = _slowdown(ranks, stopwatch, Block(ranks.device).run)
    return of_block, _slowdown(ranks, stopwatch, partial(tensor.add_, 1.0))


def _stopwatch(ranks: Ranks) -> Stopwatch:
    """The profile's own, unless ranks take turns on a core, which only the clock on the wall sees."""
    turns = ranks.device.type == "cpu" and ranks.per_node > (os.cpu_count() or 1)
    return HostStopwatch(threads=0) if turns else stopwatch_of(ranks.device)


def _slowdown(ranks: Ranks, stopwatch: Stopwatch, deed: Callable[[], object]) -> float:
    alone = 0.0
    for place in range(ranks.per_node):
        ranks.wait("the others' turn to compute alone")
        if ranks.rank % ranks.per_node == place:
            alone = _median(stopwatch, deed)
    ranks.wait("the start of computing together")
    return max(ranks.gather(_median(stopwatch, deed) / alone, "the others' compute"))


def _median(stopwatch: Stopwatch, deed: Callable[[], object]) -> float:
    deed()
    until = time.perf_counter() + _SECONDS
    samples: list[float] = []
    while time.perf_counter() < until or not samples:
        _, seconds = stopwatch.measure(deed)
        stopwatch.settle()
        samples.append(seconds())
    return statistics.median(samples)
