"""Where one rank's time goes in one step."""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from autopart.runtime.execution.clock import Clock, Mark, Slice
from autopart.schedule import Action


class StepTrace(NamedTuple):
    """Where one rank's time went in one step, in seconds."""

    slices: tuple[Slice, ...]
    blocked_time: float
    """Waiting until sends were received."""
    sync_time: float
    """Summing gradients over replicas and tied copies, and waiting for them."""
    end: float
    """From the start of the step to the end of the sums."""
    begun: float = 0.0
    """When the step began, on the host's monotonic clock, which all processes of a host share."""


def begin_marks(clock: Clock, device: torch.device) -> "Marks":
    """A step begins. On a CPU with one thread its time on a core is the actions' own."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return Marks(clock.mark(), time.perf_counter(), alone)


@dataclass(slots=True)
class Marks:
    """Points in one step, told apart later: on a GPU they lie ahead when they are made."""

    begin: Mark
    begun: float
    has_core_time: bool
    actions: list[tuple[Action, tuple[Mark, Mark, Mark], float | None]] = field(
        default_factory=list
    )
    """Each action with its start, the moment when it was ready, its end, and its thread's time on a
    core."""
    blocked: list[tuple[Mark, Mark]] = field(default_factory=list)
    acted: Mark | None = None
    summed: Mark | None = None

    def add(self, action: Action, times: tuple[Mark, Mark, Mark], core: float) -> None:
        """An action has ended, for which this thread had `core` seconds of a core."""
        self.actions.append((action, times, core if self.has_core_time else None))

    def slices(self, clock: Clock) -> tuple[Slice, ...]:
        """The actions so far, in seconds from the begin."""
        return tuple(
            Slice(action, *(clock.seconds(self.begin, mark) for mark in times), core=core)
            for action, times, core in self.actions
        )

    def trace(self, clock: Clock) -> StepTrace:
        """The times between the marks; waits until the step's work is done."""
        assert self.acted is not None and self.summed is not None
        clock.wait()
        seconds, begin = clock.seconds, self.begin
        return StepTrace(
            slices=self.slices(clock),
            blocked_time=sum(seconds(start, end) for start, end in self.blocked),
            sync_time=seconds(self.acted, self.summed),
            end=seconds(begin, self.summed),
            begun=self.begun,
        )
