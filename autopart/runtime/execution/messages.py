"""What the ranks say to each other: a schedule's orders with their sends and receives written in.

Messages between two ranks are matched by their order alone, so both sides must post them in the
same order. All orders are lowered together, on every rank alike, along one imagined run in which
each action takes one round: a receive stands on its rank where the matching send stands in that
run. Whoever waits for a message therefore waits for something that stands earlier in the one
common order, and no ring of waiting ranks can form, even if every send blocks until it is
received.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.schedule import Action, Schedule, StageRanks, predecessors, rank_of


class Send(NamedTuple):
    """Hand the results of `action` to the rank that needs them."""

    action: Action
    peer: int


class Receive(NamedTuple):
    """Make room for what `action` needs, and let it arrive."""

    action: Action
    peer: int


Event = Action | Send | Receive
Program = tuple[Event, ...]
"""What one rank does in a step, in order."""


def write_messages(schedule: Schedule, stage_ranks: StageRanks) -> tuple[Program, ...]:
    """The program of each rank, of a schedule that `check_schedule` lets pass."""
    programs: list[list[Event]] = [[] for _ in schedule]
    for rank, action in _rounds(schedule, len(stage_ranks)):
        programs[rank].append(action)
        target = consumer(action, len(stage_ranks))
        if target is not None:
            peer = rank_of(stage_ranks[target.stage], target.microbatch)
            programs[rank].append(Send(action, peer))
            programs[peer].append(Receive(target, rank))
    return tuple(tuple(program) for program in programs)


def consumer(action: Action, num_stages: int) -> Action | None:
    """The action of another stage that waits for the results of `action`."""
    stage, op, microbatch = action
    towards = stage + 1 if op == "F" else stage - 1
    return Action(towards, op, microbatch) if 0 <= towards < num_stages else None


def _rounds(schedule: Schedule, num_stages: int) -> list[tuple[int, Action]]:
    """Every (rank, action) in the order of a run in which each action takes one round."""
    done: set[Action] = set()
    at = [0] * len(schedule)
    run: list[tuple[int, Action]] = []
    while ready := _ready(schedule, at, done, num_stages):
        for rank, action in ready:
            at[rank] += 1
            done.add(action)
        run += ready
    assert len(run) == sum(map(len, schedule)), "the schedule deadlocks; check_schedule says where"
    return run


def _ready(
    schedule: Schedule, at: Sequence[int], done: set[Action], num_stages: int
) -> list[tuple[int, Action]]:
    return [
        (rank, order[at[rank]])
        for rank, order in enumerate(schedule)
        if at[rank] < len(order) and done.issuperset(predecessors(order[at[rank]], num_stages))
    ]
