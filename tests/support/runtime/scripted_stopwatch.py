"""A stopwatch that runs every action and reads known seconds, so that no test of times depends on the machine."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch


class ScriptedStopwatch:
    """Runs every action and reads the next of the given seconds."""

    waiting_share = 0.25

    def __init__(self, seconds: Iterator[float], *, counts_host_work: bool = False) -> None:
        self._seconds = seconds
        self.counts_host_work = counts_host_work

    def measure(self, action: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
        result, seconds = action(), next(self._seconds)
        return result, lambda: seconds

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Any]
    ) -> tuple[Any, Callable[[], float]]:
        raise AssertionError("rounds run no pairs")

    def settle(self) -> None:
        pass


def rising_seconds(_device: torch.device) -> ScriptedStopwatch:
    """A stopwatch for a profiler: each action takes a second more than the one before."""
    return ScriptedStopwatch(map(float, count(1)))
