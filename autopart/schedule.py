"""Schedules as plain data: one order of actions for each rank.

An action prints and parses as torch's own letters, `2F0`: stage 2, forward, microbatch 0.
Microbatch m of a stage with r ranks runs on the rank m mod r of that stage, so replicas take
turns and a schedule without replicas is the case r = 1.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from autopart.errors import ScheduleError

Op = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """One operation of one stage on one microbatch: F forward, B whole backward, or its halves
    I (gradient of the input) and W (gradient of the weights)."""

    stage: int
    op: Op
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch}"


Order = tuple[Action, ...]
Schedule = tuple[Order, ...]
"""The order of each rank, ranks counted from 0; an idle rank's order is empty."""

StageRanks = Sequence[Sequence[int]]

_ACTION = re.compile(r"([0-9]+)([FBIW])([0-9]+)")


def parse_action(text: str) -> Action:
    """Read `2F0`; raises ScheduleError on anything else."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ScheduleError(
            f"'{text}' is not an action; write stage, one of F B I W, microbatch: 2F0"
        )
    return Action(int(match[1]), match[2], int(match[3]))  # pyright: ignore[reportArgumentType]


def parse_order(text: str) -> Order:
    """Read actions separated by spaces: `0F0 0F1 0B0 0B1`."""
    return tuple(parse_action(word) for word in text.split())


def format_order(order: Order) -> str:
    """The reverse of `parse_order`."""
    return " ".join(map(str, order))


def gpipe(stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards (Huang et al., GPipe, NeurIPS 2019).

        rank 0  0F0 0F1 0F2  .   .   .  0B0 0B1 0B2
        rank 1   .  1F0 1F1 1F2 1B0 1B1 1B2  .   .

    A rank holds every microbatch that it was dealt.
    """
    return _orders(stage_ranks, num_microbatches, lambda stage, mine: len(mine))


def warmup(stage_ranks: StageRanks, stage: int) -> int:
    """Forwards of a rank of `stage` before its first backward in 1F1B: what keeps every rank from
    there to the end fed, ceil(ranks from the stage on / ranks of the stage) (NOAM of Narayanan et al.,
    PipeDream, SOSP 2019); k - s where all of k stages have as many ranks."""
    behind = sum(len(ranks) for ranks in stage_ranks[stage:])
    return math.ceil(behind / len(stage_ranks[stage]))


def one_f_one_b(stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """Warm up, then one forward and one backward in turn, then cool down
    (Narayanan et al., PipeDream-Flush, ICML 2021; Fan et al., DAPPLE, PPoPP 2021).

        rank 0  0F0 0F1  .  0B0 0F2 0B1  .  0B2
        rank 1   .  1F0 1B0 1F1 1B1 1F2 1B2  .

    A rank holds at most `warmup` microbatches. Nothing waits in a circle: with R ranks from a stage
    on, r of its own and a warmup of w, its backward of microbatch b needs forwards up to
    b + (w - 1) r < b + R, and the stage ahead runs those before its backward of b: its w r is not
    below its own R.
    """
    return _orders(
        stage_ranks,
        num_microbatches,
        lambda stage, mine: min(warmup(stage_ranks, stage), len(mine)),
    )


GENERATORS: dict[str, Callable[[StageRanks, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
}


def make_schedule(name: str, stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """The schedule called `name`; raises ScheduleError listing the known ones."""
    if name not in GENERATORS:
        raise ScheduleError(f"unknown schedule '{name}'; known: {', '.join(GENERATORS)}")
    return GENERATORS[name](stage_ranks, num_microbatches)


def dealt(ranks: Sequence[int], rank: int, num_microbatches: int) -> range:
    """The microbatches that `rank` runs of a stage on `ranks`."""
    return range(ranks.index(rank), num_microbatches, len(ranks))


def rank_of(ranks: Sequence[int], microbatch: int) -> int:
    """The rank that runs `microbatch` of a stage on `ranks`."""
    return ranks[microbatch % len(ranks)]


def _orders(
    stage_ranks: StageRanks, num_microbatches: int, in_flight: Callable[[int, range], int]
) -> Schedule:
    num_ranks = 1 + max(rank for ranks in stage_ranks for rank in ranks)
    orders: list[Order] = [()] * num_ranks
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            mine = dealt(ranks, rank, num_microbatches)
            orders[rank] = _one_rank(stage, mine, in_flight(stage, mine))
    return tuple(orders)


def _one_rank(stage: int, mine: range, in_flight: int) -> Order:
    order = [Action(stage, "F", m) for m in mine[:in_flight]]
    for done, later in zip(mine, mine[in_flight:], strict=False):
        order += [Action(stage, "B", done), Action(stage, "F", later)]
    order += [Action(stage, "B", m) for m in mine[len(mine) - in_flight :]]
    return tuple(order)


def check_schedule(schedule: Schedule, stage_ranks: StageRanks, num_microbatches: int) -> None:
    """Raise ScheduleError unless every stage runs every microbatch once, on the rank it is dealt
    to, backward after forward, and nothing waits in a circle."""
    expected = {
        (rank_of(ranks, m), stage, m)
        for stage, ranks in enumerate(stage_ranks)
        for m in range(num_microbatches)
    }
    for op, seen in _by_op(schedule).items():
        for place in sorted(expected - seen):
            rank, stage, m = place
            raise ScheduleError(f"rank {rank} never runs {stage}{op}{m}")
        for place in sorted(seen - expected):
            rank, stage, m = place
            raise ScheduleError(f"rank {rank} runs {stage}{op}{m}, which is not its own")
    _check_progress(schedule, len(stage_ranks), stage_ranks)


def _by_op(schedule: Schedule) -> dict[Op, set[tuple[int, int, int]]]:
    seen: dict[Op, set[tuple[int, int, int]]] = {"F": set(), "B": set()}
    for rank, order in enumerate(schedule):
        for action in order:
            if action.op not in seen:
                raise ScheduleError(f"rank {rank}: {action}: split backwards are not run yet")
            place = (rank, action.stage, action.microbatch)
            if place in seen[action.op]:
                raise ScheduleError(f"rank {rank} runs {action} twice")
            seen[action.op].add(place)
    return seen


def predecessors(action: Action, num_stages: int) -> list[Action]:
    """The actions whose results `action` needs."""
    stage, op, m = action
    if op == "F":
        return [Action(stage - 1, "F", m)] if stage > 0 else []
    needs = [Action(stage, "F", m)]
    return [*needs, Action(stage + 1, "B", m)] if stage + 1 < num_stages else needs


def _check_progress(schedule: Schedule, num_stages: int, stage_ranks: StageRanks) -> None:
    done: set[Action] = set()
    at = [0] * len(schedule)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(schedule):
            while at[rank] < len(order) and done.issuperset(
                predecessors(order[at[rank]], num_stages)
            ):
                done.add(order[at[rank]])
                at[rank] += 1
                moved = True
    stuck = [
        f"rank {r} on {o[i]}"
        for r, (o, i) in enumerate(zip(schedule, at, strict=True))
        if i < len(o)
    ]
    if stuck:
        raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")
