"""Seconds that an action takes, and the summary over several measurements.

A stopwatch runs an action and returns a pending time. The caller reads it after `settle`, because a
GPU's clock is readable only after the device has caught up. This module has the stopwatches for
real devices. `autopart.runtime.profiling.roofline` has one for datasheets.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

from autopart.runtime.measuring.clock import StreamClock
from autopart.runtime.measuring.side_by_side import InTurn, SideBySide, side_by_side

T = TypeVar("T")

PendingTime = Callable[[], float]
"""One action's seconds. Call it after `Stopwatch.settle`."""


Gradients = Sequence[torch.Tensor | None]
"""The results of a layer's backward."""


class Stopwatch(Protocol):
    """Tells how long an action takes on a device."""

    @property
    def counts_host_work(self) -> bool:
        """Whether a time includes the host's work around the kernels (Python, autograd)."""
        ...

    @property
    def waiting_share(self) -> float:
        """Share of all measured time in which other work had the processor, 0 to 1."""
        ...

    def measure(self, action: Callable[[], T]) -> tuple[T, PendingTime]:
        """Run `action` once. Returns its result and its pending time."""
        ...

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        """Run both together, as an overlapped pair. Returns the gradients and the pair's pending time."""
        ...

    def settle(self) -> None:
        """Wait until all measured actions have finished."""
        ...


class HostStopwatch:
    """Times actions that have finished when they return, as on a CPU.

    With one thread, only the time in which the thread runs counts. Other processes then change
    little. Otherwise they would interrupt a whole step more often than a single layer. Several
    threads are timed by the wall clock.
    """

    counts_host_work = True

    def __init__(self, threads: int) -> None:
        self._own = time.thread_time if threads == 1 else time.perf_counter
        self._wall_time = 0.0
        self._run_time = 0.0

    def measure(self, action: Callable[[], T]) -> tuple[T, PendingTime]:
        wall, own = time.perf_counter(), self._own()
        result = action()
        elapsed = self._own() - own
        self._wall_time += time.perf_counter() - wall
        self._run_time += elapsed
        return result, lambda: elapsed

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        return _measure_together(self, InTurn(), forward, backward)

    def settle(self) -> None:
        """Return at once: every action has finished when it returns."""

    @property
    def waiting_share(self) -> float:
        """Share as the protocol defines it; 0 for several threads, where it is not known."""
        return max(0.0, 1 - self._run_time / self._wall_time) if self._wall_time else 0.0


class StreamStopwatch:
    """Times actions that only enqueue their work, between events on a GPU's stream."""

    counts_host_work = False
    waiting_share = 0.0

    def __init__(self) -> None:
        self._clock = StreamClock()
        self._pairs: SideBySide | None = None

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        if self._pairs is None:
            self._pairs = side_by_side(torch.device("cuda"))
        return _measure_together(self, self._pairs, forward, backward)

    def measure(self, action: Callable[[], T]) -> tuple[T, PendingTime]:
        start = self._clock.mark()
        result = action()
        end = self._clock.mark()
        return result, lambda: self._clock.seconds(start, end)

    def settle(self) -> None:
        self._clock.wait()


def _measure_together(
    stopwatch: Stopwatch,
    pairs: SideBySide,
    forward: Callable[[], object],
    backward: Callable[[], Gradients],
) -> tuple[Gradients, PendingTime]:
    gradients: list[torch.Tensor | None] = []

    def run_backward() -> Gradients:
        gradients.extend(backward())
        return gradients

    # The forward's graph is dropped at once, so no backward ever asks for its stream.
    _, seconds = stopwatch.measure(lambda: pairs.run(forward, run_backward, "dropped", "own"))
    return gradients, seconds


def stopwatch_of(device: torch.device) -> Stopwatch:
    """Return the stopwatch for actions that really run, on a CPU or a GPU."""
    return StreamStopwatch() if device.type == "cuda" else HostStopwatch(torch.get_num_threads())


class Summary(NamedTuple):
    """Summary over several measurements."""

    median: float
    spread: float
    """Interquartile range, in the samples' unit; 0 for a single measurement."""


def summarize(samples: Sequence[float]) -> Summary:
    """Return median and interquartile range over at least one sample."""
    if len(samples) < 2:
        return Summary(samples[0], 0.0)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, high - low)


def relative_spread(samples: Sequence[float]) -> float:
    """Return interquartile range over median, a share; 0 where the median is 0."""
    summary = summarize(samples)
    return summary.spread / summary.median if summary.median else 0.0
