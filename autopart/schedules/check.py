"""Check that a schedule is complete, runs on the right ranks and has no deadlock."""

import numpy as np

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Schedule, StageRanks
from autopart.schedules.encoding import Numbered, connect, number_actions
from autopart.schedules.lending import check_lending, computing
from autopart.schedules.rounds import rounds


def check_schedule(schedule: Schedule, stage_ranks: StageRanks, num_microbatches: int) -> None:
    """Raise ScheduleError, naming the action, unless the schedule can run and is complete.

    - Every stage runs every microbatch once, on the rank that the microbatch is dealt to.
    - A backward is whole (B) or split (I and W).
    - An overlapped pair is a forward, and a whole backward of another microbatch.
    - No ranks wait for each other in a circle.
    - Stash that is lent comes back before its backward (`lending.check_lending`).

    A schedule that passes also runs where a send blocks until it is received. The actions then have
    one common order in which each follows the actions that it needs. There a receive can stand
    right after its send.
    """
    bare = computing(schedule)
    numbered = number_actions(bare)
    table = _Table(numbered, stage_ranks, num_microbatches)
    table.refuse_doubles()
    table.refuse_missing()
    table.refuse_strays()
    rounds(connect(bare, numbered, len(stage_ranks)))
    check_lending(schedule, stage_ranks)


class _Table:
    """The actions in columns, and how often each stage runs each microbatch with each op."""

    def __init__(self, numbered: Numbered, stage_ranks: StageRanks, num_microbatches: int) -> None:
        self.actions, _, self.rank, self.stage, self.op, self.microbatch, _ = numbered
        self.shape = (len(stage_ranks), num_microbatches)
        # owner[s, m] is the rank that stage s runs microbatch m on.
        turns = np.arange(num_microbatches)
        self.owner = np.array([np.asarray(r)[turns % len(r)] for r in stage_ranks])
        self.known = (self.stage < self.shape[0]) & (self.microbatch < num_microbatches)
        # times[s, m, op] counts the actions; only known stages and microbatches have a place in it.
        where = (self.stage[self.known] * num_microbatches + self.microbatch[self.known]) * 4
        times = np.bincount(where + self.op[self.known], minlength=4 * self.owner.size)
        self.times = times.reshape(*self.shape, 4)

    def place(self, at: int) -> str:
        return f"rank {self.rank[at]} runs {self.actions[at]}"

    def refuse_doubles(self) -> None:
        if self.times.max(initial=0) < 2:
            return
        seen: set[tuple[int, Action]] = set()
        for rank, action in zip(self.rank.tolist(), self.actions, strict=True):
            if (rank, action) in seen:
                raise ScheduleError(f"rank {rank} runs {action} twice")
            seen.add((rank, action))

    def refuse_missing(self) -> None:
        # Only actions on their own rank count: an action elsewhere is missing here.
        own = self.known.copy()
        stage, microbatch = self.stage[own], self.microbatch[own]
        own[own] = self.owner[stage, microbatch] == self.rank[own]
        there = np.zeros((*self.shape, 4), dtype=bool)
        there[self.stage[own], self.microbatch[own], self.op[own]] = True
        forward, whole, half, weights = (there[..., op] for op in range(4))
        both = whole & (half | weights)
        for lacks, op in (
            (~forward, "F"),
            (~(whole | half | weights), "B"),
            (~whole & ~half, "I"),
            (~whole & ~weights, "W"),
        ):
            for stage, microbatch in np.argwhere(lacks)[:1]:
                rank = self.owner[stage, microbatch]
                raise ScheduleError(f"rank {rank} never runs {stage}{op}{microbatch}")
        for stage, microbatch in np.argwhere(both)[:1]:
            other = "I" if half[stage, microbatch] else "W"
            raise ScheduleError(
                f"rank {self.owner[stage, microbatch]} runs {stage}B{microbatch} and "
                f"{stage}{other}{microbatch}; a backward is whole or split"
            )

    def refuse_strays(self) -> None:
        stray = ~self.known
        stage, microbatch = self.stage[self.known], self.microbatch[self.known]
        stray[self.known] = self.owner[stage, microbatch] != self.rank[self.known]
        for at in np.flatnonzero(stray)[:1]:
            raise ScheduleError(f"{self.place(at)}, which is not its own")
