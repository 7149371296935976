"""One rank's times in one step: its actions, its waits and its sums."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from autopart.runtime.measuring.clock import DeviceClock, Mark, MeasuredAction
from autopart.schedules.actions import Action


class StepTrace(NamedTuple):
    """One rank's times in one step, in seconds."""

    slices: tuple[MeasuredAction, ...]
    blocked_time: float
    """Seconds in which the rank waited until its sends were received."""
    sync_time: float
    """Seconds spent on gradient sums over replicas and tied copies, waits included."""
    end: float
    """Seconds from the step's start to the end of its syncs."""
    begun: float = 0.0
    """Step start on the host's monotonic clock, which all its processes share."""
    group_time: float = 0.0
    """Seconds for the sums of partial gradients over the tensor group, which follow all others."""
    sums_time: float | None = None
    """Seconds in which some bucket was under way beside actions or after them; None where none was."""


def begin_marks(clock: DeviceClock, device: torch.device) -> "Marks":
    """Begin a step. On a CPU with one thread, time on the core is the actions' own time."""
    is_single_thread = device.type == "cpu" and torch.get_num_threads() == 1
    return Marks(clock.mark(), time.perf_counter(), is_single_thread)


@dataclass(slots=True)
class Marks:
    """Marks in one step, read after it: on a GPU a mark is reached later than it is made."""

    begin: Mark
    begun: float
    has_core_time: bool
    actions: list[tuple[Action, tuple[Mark, Mark, Mark], float | None]] = field(
        default_factory=list
    )
    """Each action, its marks (start, ready, end), and its seconds on a core if known."""
    blocked: list[tuple[Mark, Mark]] = field(default_factory=list)
    under_way: list[tuple[float, float]] = field(default_factory=list)
    """When each bucket went out beside a backward, and when it was summed."""
    acted: Mark | None = None
    summed: Mark | None = None
    grouped: Mark | None = None
    """The end of the tensor group's own sums; None without such a group."""

    def add(self, action: Action, times: tuple[Mark, Mark, Mark], core: float) -> None:
        """Add an action that has ended and for which this thread had `core` seconds on a core."""
        self.actions.append((action, times, core if self.has_core_time else None))

    def slices(self, clock: DeviceClock) -> tuple[MeasuredAction, ...]:
        """Return the actions so far. Their times are seconds since the step began."""
        return tuple(
            MeasuredAction(action, *(clock.seconds(self.begin, mark) for mark in times), core=core)
            for action, times, core in self.actions
        )

    def trace(self, clock: DeviceClock) -> StepTrace:
        """Wait until all work in the step is done, then return the times between its marks."""
        assert self.acted is not None and self.summed is not None
        clock.wait()
        seconds, begin = clock.seconds, self.begin
        return StepTrace(
            slices=self.slices(clock),
            blocked_time=sum(seconds(start, end) for start, end in self.blocked),
            sync_time=seconds(self.acted, self.summed),
            end=seconds(begin, self.summed),
            group_time=0.0 if self.grouped is None else seconds(self.summed, self.grouped),
            sums_time=_covered(self.under_way) if self.under_way else None,
            begun=self.begun,
        )


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in some interval."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
