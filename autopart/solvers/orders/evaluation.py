"""What an order costs: the simulator's step time, and the bytes of stash that a rank then holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.errors import ScheduleError
from autopart.order_bounds import OrderProblem
from autopart.schedule import Schedule
from autopart.simulator.actions import Actions, Array, B, F, I, W, encode
from autopart.simulator.clock import Times, last_ends, run
from autopart.simulator.costs import KindCosts, kind_costs
from autopart.simulator.syncs import add_updates, after_syncs


class Run(NamedTuple):
    """A schedule in numbers with its simulated times."""

    actions: Actions
    times: Times
    step_time: float
    last_rank: int
    """The rank whose last action the end of the step waits for."""


class Clock:
    """The simulator, with what all orders of a problem share made ready."""

    def __init__(self, task: OrderProblem) -> None:
        self.task = task
        self.costs: KindCosts = kind_costs(task.stages, task.action_overhead)
        self.actions_left = 0
        """How many more actions may be simulated."""

    def run(self, schedule: Schedule) -> Run:
        """Simulate a schedule; raises ScheduleError on a deadlock."""
        return self.run_actions(encode(schedule, len(self.task.stages)))

    def run_actions(self, actions: Actions) -> Run:
        """The same for a schedule that is in numbers already."""
        self.actions_left -= actions.num_actions
        times = run(actions, self.costs, sends_overlap=self.task.sends_overlap)
        free = last_ends(actions, times)
        ends = add_updates(
            after_syncs(free, self.task.syncs, max), self.task.stage_ranks, self.task.stages
        )
        step = max(ends)
        last = ends.index(step)
        waited = {last, *(r for sync in self.task.syncs if last in sync.ranks for r in sync.ranks)}
        return Run(actions, times, step, max(waited, key=free.__getitem__))

    def step_time(self, schedule: Schedule) -> float | None:
        """Seconds of a step; None where the schedule deadlocks."""
        try:
            return self.run(schedule).step_time
        except ScheduleError:
            return None


def peak_stash(task: OrderProblem, schedule: Schedule) -> tuple[int, ...]:
    """The most bytes of stash that each rank holds at a time; they do not depend on any seconds."""
    return tuple(_peak(task, encode((order,), len(task.stages)).kind) for order in schedule)


def _peak(task: OrderProblem, kinds: Array) -> int:
    return int(np.cumsum(stash_changes(task)[kinds]).max(initial=0))


def stash_changes(task: OrderProblem) -> Array:
    """Bytes that an action of each kind keeps (F) or frees (B, W); I leaves what W needs."""
    changes = np.zeros(4 * len(task.stages), dtype=np.int64)
    kept = task.waiting_bytes or task.stash_bytes
    for stage, (stash, waiting) in enumerate(zip(task.stash_bytes, kept, strict=True)):
        changes[4 * stage + F], changes[4 * stage + B] = stash, -stash
        changes[4 * stage + I], changes[4 * stage + W] = waiting - stash, -waiting
    return changes


def fits(task: OrderProblem, schedule: Schedule) -> bool:
    """Whether every rank's stash stays within its room."""
    return exceeds(task.room_bytes, peak_stash(task, schedule)) is None


def exceeds(room: Sequence[int] | None, peaks: Sequence[int]) -> int | None:
    """The first rank whose peak is above its room."""
    if room is None:
        return None
    return next((r for r, peak in enumerate(peaks) if peak > room[r]), None)
