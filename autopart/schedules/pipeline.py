"""What a generator is told, and the turns in which stages take their microbatches."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.schedule import Action, Op, Order


class Pipeline(NamedTuple):
    """One pipeline to be scheduled: ranks 0 to k - 1, each with one copy of its stages."""

    num_ranks: int
    stages_per_rank: int
    num_microbatches: int

    @property
    def num_stages(self) -> int:
        """Stages of all ranks."""
        return self.num_ranks * self.stages_per_rank


Step = tuple[int, Op]
"""A stage and what it does next, to whichever microbatch has its turn."""


def in_turn(steps: Iterable[Step], num_microbatches: int) -> Order:
    """Give each step its microbatch: forwards and backwards of a stage take them from 0 up, W the
    oldest whose I is done. Steps beyond the last microbatch are left out.

    Raises ScheduleError where a W has no I before it.
    """
    turns: dict[Step, int] = {}
    half_done: dict[int, deque[int]] = {}
    order: list[Action] = []
    for stage, op in steps:
        if op == "W":
            if not half_done.get(stage):
                raise ScheduleError(f"stage {stage} has a W before its I")
            microbatch = half_done[stage].popleft()
        else:
            turn: Step = (stage, "F" if op == "F" else "B")
            microbatch = turns.get(turn, 0)
            turns[turn] = microbatch + 1
        if op == "I":
            half_done.setdefault(stage, deque()).append(microbatch)
        if microbatch < num_microbatches:
            order.append(Action(stage, op, microbatch))
    return tuple(order)
