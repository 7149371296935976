"""An order's seconds and stash bytes: the simulator's step, and each rank's peak."""

from collections.abc import Sequence

import numpy as np

from autopart.bounds.any_order_partition import OrderProblem
from autopart.errors import ScheduleError
from autopart.schedules.actions import Schedule
from autopart.schedules.encoding import B, F, I, IntArray, W, encode
from autopart.simulator.clock import last_ends, run
from autopart.simulator.costs import KindCosts, kind_costs
from autopart.simulator.syncs import add_updates, after_syncs, effects_of


class Clock:
    """The simulator for one problem's orders, with their common costs prepared."""

    def __init__(self, task: OrderProblem) -> None:
        self.task = task
        self.costs: KindCosts = kind_costs(task.stages, task.action_overhead)

    def run(self, schedule: Schedule) -> float:
        """The step in seconds; raises ScheduleError on a deadlock.

        Where ranks count from their own starts: the longest time from a rank's start to its update.
        """
        actions = encode(schedule, len(self.task.stages))
        effects = effects_of(actions, self.task.syncs, {})
        times = run(
            actions,
            self.costs,
            sends_overlap=self.task.sends_overlap,
            rendezvous=self.task.rendezvous,
            effects=effects,
        )
        free = last_ends(actions, times)
        synced = after_syncs(free, self.task.syncs, max, effects, times.end)
        ends = add_updates(synced, self.task.stage_ranks, self.task.stages)
        if not self.task.rank_starts:
            return max(ends)
        return max(end - start for end, start in zip(ends, self.task.rank_starts, strict=True))

    def step_time(self, schedule: Schedule) -> float | None:
        """Step seconds; None where the schedule deadlocks."""
        try:
            return self.run(schedule)
        except ScheduleError:
            return None


def peak_stash(task: OrderProblem, schedule: Schedule) -> tuple[int, ...]:
    """Each rank's peak stash in bytes. It depends on the orders only, not on seconds."""
    return tuple(_peak(task, encode((order,), len(task.stages)).kind) for order in schedule)


def _peak(task: OrderProblem, kinds: IntArray) -> int:
    return int(np.cumsum(stash_changes(task)[kinds]).max(initial=0))


def stash_changes(task: OrderProblem) -> IntArray:
    """Bytes that each action kind adds to the stash, shape (4 * stages,).

    F adds the stash, B frees it. I leaves the bytes that W needs, and W frees them.
    """
    changes = np.zeros(4 * len(task.stages), dtype=np.int64)
    kept = task.waiting_bytes or task.stash_bytes
    for stage, (stash, waiting) in enumerate(zip(task.stash_bytes, kept, strict=True)):
        changes[4 * stage + F], changes[4 * stage + B] = stash, -stash
        changes[4 * stage + I], changes[4 * stage + W] = waiting - stash, -waiting
    return changes


def fits(task: OrderProblem, schedule: Schedule) -> bool:
    """Whether each rank's peak stash fits its room."""
    return exceeds(task.room_bytes, peak_stash(task, schedule)) is None


def exceeds(room: Sequence[int] | None, peaks: Sequence[int]) -> int | None:
    """The first rank whose peak exceeds its room; None where there is none."""
    if room is None:
        return None
    return next((r for r, peak in enumerate(peaks) if peak > room[r]), None)
