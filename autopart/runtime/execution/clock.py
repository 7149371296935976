"""When things happen on one rank: a monotonic clock on a CPU, events on its stream on a GPU."""

import time
from typing import NamedTuple, Protocol

import torch

from autopart.schedule import Action

Mark = float | torch.cuda.Event


class Slice(NamedTuple):
    """One action as it was run; seconds from the start of the step."""

    action: Action
    start: float
    """The rank turned to the action: what it did before is done."""
    ready: float
    """What the action needs had arrived."""
    end: float
    core: float | None = None
    """What its thread had of a core from `ready` to `end`, on a CPU with one thread: less than they
    lie apart where others wanted the core."""


class Clock(Protocol):
    """Marks points in a rank's work, and says later when they were reached."""

    def mark(self) -> Mark:
        """This point in the rank's work."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """From one mark to a later one, which must have been reached."""
        ...

    def wait(self) -> None:
        """Return when all work that was started is done."""
        ...


class HostClock:
    """A CPU works while it is called, so the time of the call is the time of the work."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, float) and isinstance(end, float)
        return end - start

    def wait(self) -> None:
        pass


class StreamClock:
    """A GPU works later than it is called; its own stream notes when it passes each mark."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end) * 1e-3

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    """The clock that tells when work on `device` is done."""
    return StreamClock() if device.type == "cuda" else HostClock()
