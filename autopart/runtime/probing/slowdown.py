"""Slowdown when all ranks on one node compute at the same time."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from autopart.runtime.measuring.fixed_work import TransformerMlp
from autopart.runtime.measuring.stopwatch import HostStopwatch, Stopwatch, stopwatch_of
from autopart.runtime.probing.ranks import Ranks

_SECONDS = 0.6
"""Seconds to measure alone, and again together with the others."""
_COPIED = 16 << 20
"""Bytes, more than a core's caches can store."""


def measure_slowdown(ranks: Ranks) -> tuple[float, float]:
    """Measure two slowdowns: of a transformer MLP, and of an addition that is pure memory traffic.

    A slowdown is the time with all ranks on the node over the time alone, on the slowest rank.
    Every rank must call this.
    """
    tensor = torch.ones(_COPIED // 4, device=ranks.device)
    stopwatch = _stopwatch(ranks)
    of_block = _slowdown(ranks, stopwatch, TransformerMlp(ranks.device).run)
    return of_block, _slowdown(ranks, stopwatch, partial(tensor.add_, 1.0))


def _stopwatch(ranks: Ranks) -> Stopwatch:
    """Return the profile's stopwatch, unless ranks share a core, which only the wall clock sees."""
    turns = ranks.device.type == "cpu" and ranks.per_node > (os.cpu_count() or 1)
    return HostStopwatch(threads=0) if turns else stopwatch_of(ranks.device)


def _slowdown(ranks: Ranks, stopwatch: Stopwatch, action: Callable[[], object]) -> float:
    # Step 1: the node's ranks take turns and compute alone.
    alone = 0.0
    for place in range(ranks.per_node):
        ranks.wait("the others' turn to compute alone")
        if ranks.rank % ranks.per_node == place:
            alone = _median(stopwatch, action)
    # Step 2: all ranks compute at once.
    ranks.wait("the start of computing together")
    return max(ranks.gather(_median(stopwatch, action) / alone, "the others' compute"))


def _median(stopwatch: Stopwatch, action: Callable[[], object]) -> float:
    action()
    until = time.perf_counter() + _SECONDS
    samples: list[float] = []
    while time.perf_counter() < until or not samples:
        _, seconds = stopwatch.measure(action)
        stopwatch.settle()
        samples.append(seconds())
    return statistics.median(samples)
