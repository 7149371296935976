"""How long an action takes, and the summary of several measurements of it.

A stopwatch runs an action and gives back a reading that is resolved later, because a GPU's clock
is only readable once the device has caught up. The device's own clock is here; the roofline of a
GPU that is not at hand is `autopart.runtime.roofline`.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from autopart.runtime.clock import clock_of

T = TypeVar("T")

Reading = Callable[[], float]
"""Seconds of one action; to be asked after `Stopwatch.settle`."""


class Stopwatch(Protocol):
    """What can tell how long an action takes on a device."""

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        """Run `action` once; its result, and what tells its seconds."""
        ...

    def settle(self) -> None:
        """Wait until everything measured so far has finished."""
        ...


class DeviceStopwatch:
    """The device's own clock: a monotonic one on a CPU, events on the stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._clock = clock_of(device)

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        start = self._clock.mark()
        result = action()
        end = self._clock.mark()
        return result, lambda: self._clock.seconds(start, end)

    def settle(self) -> None:
        self._clock.wait()


class Summary(NamedTuple):
    """Several measurements of the same thing."""

    median: float
    spread: float
    """Interquartile range; 0 for a single measurement."""


def summarize(samples: Sequence[float]) -> Summary:
    """Median and interquartile range of at least one sample."""
    if len(samples) < 2:
        return Summary(samples[0], 0.0)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, high - low)


def relative_spread(samples: Sequence[float]) -> float:
    """Interquartile range over median, a share; 0 where nothing took any time."""
    summary = summarize(samples)
    return summary.spread / summary.median if summary.median else 0.0
