"""A schedule as a picture: one slot for each action, `.` where a rank waits."""

from collections.abc import Sequence

from autopart.schedule import Action, Schedule, predecessors


def slots(
    schedule: Schedule,
    num_stages: int,
    starts: Sequence[int] = (0,),
    lengths: dict[str, int] | None = None,
) -> dict[Action, int]:
    """When each action starts where F, B, I and W take `lengths` (one slot each if None) and sends
    nothing, found by going round the ranks until all is done."""
    took = lengths or dict.fromkeys("FBIW", 1)
    start: dict[Action, int] = {}
    end: dict[Action, int] = {}
    there = {action for order in schedule for action in order}
    at, free = [0] * len(schedule), [0] * len(schedule)
    while len(end) < len(there):
        before = len(end)
        for rank, order in enumerate(schedule):
            while at[rank] < len(order):
                action = order[at[rank]]
                needs = there.intersection(predecessors(action, num_stages, "BI", starts))
                if not end.keys() >= needs:
                    break
                start[action] = max([free[rank], *(end[n] for n in needs)])
                free[rank] = end[action] = start[action] + took[action.op]
                at[rank] += 1
        assert len(end) > before, "the schedule deadlocks"
    return start


def draw(schedule: Schedule, num_stages: int, starts: Sequence[int] = (0,)) -> list[str]:
    """One line a rank, `rank 0  0F0 0F1  .  0B0`."""
    start = slots(schedule, num_stages, starts)
    length = 1 + max(start.values())
    width = max(len(str(action)) for action in start)
    lines: list[str] = []
    for rank, order in enumerate(schedule):
        cells = ["."] * length
        for action in order:
            cells[start[action]] = str(action)
        lines.append(f"rank {rank}  " + " ".join(cell.center(width) for cell in cells).rstrip())
    return lines
