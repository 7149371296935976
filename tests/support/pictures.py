"""A schedule as a picture: one slot for each action, `.` where its rank waits."""

import itertools
from collections.abc import Sequence

from autopart.schedules.actions import Action, PairedForward, Schedule, has_pairs
from autopart.schedules.kind import Kind
from autopart.schedules.lending import computing
from autopart.schedules.placements import mirrored
from tests.support.waits import predecessors


def slots(
    schedule: Schedule,
    num_stages: int,
    lengths: dict[str, int] | None = None,
) -> dict[Action, int]:
    """The slot in which each action starts.

    `lengths` are the slots that F, B, I and W take, and that an overlapped pair takes ("P", else F
    and B in turn); None gives each one slot. Sends take none. Moves of
    stash take none either, and are left out.
    """
    took = lengths or dict.fromkeys("FBIWP", 1)
    schedule = computing(schedule)
    start: dict[Action, int] = {}
    end: dict[Action, int] = {}
    there = {action for order in schedule for action in order}
    at, free = [0] * len(schedule), [0] * len(schedule)
    while len(end) < len(there):
        # Each round lets every rank run all actions whose needs are done.
        before = len(end)
        for rank, order in enumerate(schedule):
            while at[rank] < len(order):
                action = order[at[rank]]
                together = [action]
                if isinstance(action, PairedForward):
                    together.append(order[at[rank] + 1])
                needs = {n for a in together for n in predecessors(a, num_stages, "BI")} & there
                if not end.keys() >= needs:
                    break
                begin = max([free[rank], *(end[n] for n in needs)])
                alone = sum(took[a.op] for a in together)
                free[rank] = begin + (took.get("P", alone) if len(together) > 1 else alone)
                for one in together:
                    start[one], end[one] = begin, free[rank]
                at[rank] += len(together)
        assert len(end) > before, "the schedule deadlocks"
    return start


def draw(schedule: Schedule, num_stages: int) -> list[str]:
    """One line for each rank, such as `rank 0  0F0 0F1  .  0B0`; a pair is `0F1;0B0`.

    A rank that moves stash has a second line, with each move in the slot of the action behind it.
    """
    start = slots(schedule, num_stages)
    length = 1 + max(start.values())
    width = 7 if has_pairs(schedule) else max(len(str(action)) for action in start)
    lines: list[str] = []
    for rank, order in enumerate(schedule):
        cells = ["."] * length
        moves = [""] * length
        for action, behind in itertools.pairwise([*order, order[-1]]):
            if action not in start:
                moves[start[behind]] = str(action)
                continue
            before = cells[start[action]]
            cells[start[action]] = str(action) if before == "." else f"{before};{action}"
        for row in (cells, moves) if any(moves) else (cells,):
            lines.append(f"rank {rank}  " + " ".join(cell.center(width) for cell in row).rstrip())
    return lines


def place_stages(
    kind: Kind, num_ranks: int, stages_per_rank: int = 1
) -> tuple[tuple[int, ...], ...]:
    """The ranks of each stage, for one pipeline on ranks 0 to `num_ranks` - 1, or two on the same."""
    if kind.bidirectional:
        return mirrored([range(num_ranks)])
    return tuple((rank,) for rank in kind.placement(num_ranks, stages_per_rank))


def copies(stages: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[list[int]]:
    """The ranks of each stage, with the given ones again from each of `firsts` on."""
    return [[first + rank for first in firsts for rank in own] for own in stages]
