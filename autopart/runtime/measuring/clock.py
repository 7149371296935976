"""Times on one rank: a monotonic clock on a CPU, stream events on a GPU."""

import time
from typing import NamedTuple, Protocol

import torch

from autopart.schedules.actions import Action

Mark = float | torch.cuda.Event


class MeasuredAction(NamedTuple):
    """One action as it ran. All times are seconds since the step began."""

    action: Action
    start: float
    """Time at which the rank turned to the action: its previous work was done."""
    ready: float
    """Time at which all inputs had arrived."""
    end: float
    core: float | None = None
    """Seconds for which the action's thread had a core between `ready` and `end`.

    Known on a CPU with one thread, else None. Less than `end - ready` where others used the core.
    """


class DeviceClock(Protocol):
    """Marks points in the rank's work and tells later when the device reached them."""

    def mark(self) -> Mark:
        """Mark this point in the rank's work."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds from one mark to a later one. The device must have reached both."""
        ...

    def wait(self) -> None:
        """Return when the device has finished all work that was started."""
        ...


class HostClock:
    """Clock for a CPU, which works during the call: the mark is the call's time."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, float) and isinstance(end, float)
        return end - start

    def wait(self) -> None:
        pass


class StreamClock:
    """Clock for a GPU, which works after the call: its stream records when it passes a mark."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end) * 1e-3

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> DeviceClock:
    """Return the clock that tells when work on `device` is done."""
    return StreamClock() if device.type == "cuda" else HostClock()
