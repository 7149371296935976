"""How long an action takes, and the summary of several measurements of it.

A stopwatch runs an action and gives back a reading that is resolved later, because a GPU's clock
is only readable once the device has caught up. The device's own clock is here; the roofline of a
GPU that is not at hand is `autopart.runtime.profiling.roofline`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from autopart.runtime.execution.clock import StreamClock

T = TypeVar("T")

Reading = Callable[[], float]
"""Seconds of one action; to be asked after `Stopwatch.settle`."""


class Stopwatch(Protocol):
    """What can tell how long an action takes on a device."""

    @property
    def counts_host_work(self) -> bool:
        """Whether the host's work around the kernels (Python, autograd) is part of a reading."""
        ...

    @property
    def waiting_share(self) -> float:
        """The share of all measured time in which something else had the processor."""
        ...

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        """Run `action` once; its result, and what tells its seconds."""
        ...

    def settle(self) -> None:
        """Wait until everything measured so far has finished."""
        ...


class HostStopwatch:
    """The time of actions that have finished when they return, as on a CPU.

    One thread's time is counted while it runs, so that a machine that others use too changes
    little: a whole step would otherwise be interrupted more often than a layer of it. Several
    threads are timed by the clock on the wall.
    """

    counts_host_work = True

    def __init__(self, threads: int) -> None:
        self._own = time.thread_time if threads == 1 else time.perf_counter
        self._wall_time = 0.0
        self._run_time = 0.0

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        wall, own = time.perf_counter(), self._own()
        result = action()
        elapsed = self._own() - own
        self._wall_time += time.perf_counter() - wall
        self._run_time += elapsed
        return result, lambda: elapsed

    def settle(self) -> None:
        """Nothing is ever outstanding."""

    @property
    def waiting_share(self) -> float:
        """As the protocol says; 0 for several threads, where it is not known."""
        return max(0.0, 1 - self._run_time / self._wall_time) if self._wall_time else 0.0


class StreamStopwatch:
    """The time of actions that only enqueue their work, between events on a GPU's stream."""

    counts_host_work = False
    waiting_share = 0.0

    def __init__(self) -> None:
        self._clock = StreamClock()

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        start = self._clock.mark()
        result = action()
        end = self._clock.mark()
        return result, lambda: self._clock.seconds(start, end)

    def settle(self) -> None:
        self._clock.wait()


def stopwatch_of(device: torch.device) -> Stopwatch:
    """The stopwatch for actions that really run, on a CPU or a GPU."""
    return StreamStopwatch() if device.type == "cuda" else HostStopwatch(torch.get_num_threads())


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
