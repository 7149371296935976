"""What the ranks say to each other: a schedule's orders with their sends and receives written in.

Messages between two ranks are matched by their order alone, so both sides must post them in the
same order. All orders are lowered together, on every rank alike, along one imagined run in which
each action takes one round: a receive stands on its rank where the matching send stands in that
run. Whoever waits for a message therefore waits for something that stands earlier in the one
common order, and no ring of waiting ranks can form, even if every send blocks until it is
received. Stages on the same rank hand their results over without a message.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autopart.schedule import Action, Op, Schedule, StageRanks, predecessors, rank_of


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

Backwards = Mapping[tuple[int, int], Op]
"""Whether (stage, microbatch) runs a whole backward B or begins with its half I."""


def write_messages(schedule: Schedule, stage_ranks: StageRanks) -> tuple[Program, ...]:
    """The program of each rank, of a schedule that `check_schedule` lets pass."""
    programs: list[list[Event]] = [[] for _ in schedule]
    backwards = backwards_of(schedule)
    for rank, action in _rounds(schedule, len(stage_ranks), backwards):
        programs[rank].append(action)
        target = consumer(action, len(stage_ranks), backwards)
        if target is None:
            continue
        peer = rank_of(stage_ranks[target.stage], target.microbatch)
        if peer != rank:
            programs[rank].append(Send(action, peer))
            programs[peer].append(Receive(target, rank))
    return tuple(tuple(program) for program in programs)


def backwards_of(schedule: Schedule) -> Backwards:
    """How each backward of the schedule begins."""
    actions = (action for order in schedule for action in order if action.op in ("B", "I"))
    return {(action.stage, action.microbatch): action.op for action in actions}


def consumer(action: Action, num_stages: int, backwards: Backwards) -> Action | None:
    """The action of another stage that waits for the results of `action`."""
    stage, op, m = action
    if op == "F":
        return Action(stage + 1, "F", m) if stage + 1 < num_stages else None
    return Action(stage - 1, backwards[stage - 1, m], m) if op != "W" and stage > 0 else None


def _needs(action: Action, num_stages: int, backwards: Backwards) -> list[Action]:
    """The actions that must have run before `action`."""
    ahead = backwards.get((action.stage + 1, action.microbatch), "B")
    return predecessors(action, num_stages, (ahead,))


def _rounds(schedule: Schedule, num_stages: int, backwards: Backwards) -> list[tuple[int, Action]]:
    """Every (rank, action) in the order of a run in which each action takes one round."""
    done: set[Action] = set()
    at = [0] * len(schedule)
    run: list[tuple[int, Action]] = []
    while ready := _ready(schedule, at, done, num_stages, backwards):
        for rank, action in ready:
            at[rank] += 1
            done.add(action)
        run += ready
    assert len(run) == sum(map(len, schedule)), "the schedule deadlocks; check_schedule says where"
    return run


def _ready(
    schedule: Schedule,
    at: Sequence[int],
    done: set[Action],
    num_stages: int,
    backwards: Backwards,
) -> list[tuple[int, Action]]:
    return [
        (rank, order[at[rank]])
        for rank, order in enumerate(schedule)
        if at[rank] < len(order) and done.issuperset(_needs(order[at[rank]], num_stages, backwards))
    ]
