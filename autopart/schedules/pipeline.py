"""The shape of a pipeline that a generator takes, and the turns of microbatches."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Op, Order


class Pipeline(NamedTuple):
    """One pipeline without replicas: ranks 0 to k - 1, with the same number of stages on each."""

    num_ranks: int
    stages_per_rank: int
    microbatches_per_replica: int

    @property
    def num_stages(self) -> int:
        """Stages on all ranks."""
        return self.num_ranks * self.stages_per_rank


Step = tuple[int, Op]
"""A stage and its next op. The microbatch follows from the turns."""


def in_turn(steps: Iterable[Step], microbatches_per_replica: int) -> Order:
    """Give each step its microbatch.

    On each stage, forwards take microbatches from 0 up, and so do backwards. W takes the oldest
    microbatch whose I is done. Steps beyond the last microbatch are left out.

    Raises ScheduleError where a W has no I before it.
    """
    turns: dict[Step, int] = {}
    split_begun: dict[int, deque[int]] = {}
    order: list[Action] = []
    for stage, op in steps:
        if op == "W":
            if not split_begun.get(stage):
                raise ScheduleError(f"stage {stage} has a W before its I")
            microbatch = split_begun[stage].popleft()
        else:
            turn: Step = (stage, "F" if op == "F" else "B")
            microbatch = turns.get(turn, 0)
            turns[turn] = microbatch + 1
        if op == "I":
            split_begun.setdefault(stage, deque()).append(microbatch)
        if microbatch < microbatches_per_replica:
            order.append(Action(stage, op, microbatch))
    return tuple(order)
