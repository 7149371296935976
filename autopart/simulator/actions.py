"""A schedule as flat arrays: what each action awaits, and which link its result takes.

Actions are numbered rank after rank, each in its order. What an action needs from its own rank must
stand before it in the order, and then costs nothing to wait for; so every action awaits at most one
result of another rank: F the F of the stage before, B and I the B or I of the stage behind. W awaits
nothing but its own I.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autopart.errors import ScheduleError
from autopart.schedule import Schedule

Array = Any
"""A numpy array."""

F, B, I, W = range(4)
"""Ops as numbers; an action's kind is 4 x its stage + its op."""
OPS = "FBIW"

_CODE = np.full(256, -1)
_CODE[[ord(op) for op in OPS]] = range(4)
_PHASE = np.array([0, 1, 1, 2])
"""B and I stand in one place: a microbatch has one or the other."""


class Actions(NamedTuple):
    """A schedule in numbers; arrays have one entry an action."""

    schedule: Schedule
    first: tuple[int, ...]
    """Rank r runs the actions from first[r] to below first[r + 1]."""
    rank: Array
    kind: Array
    microbatch: Array
    need: Array
    """The action of another rank whose result it awaits; `nothing` where it awaits none, `never`
    where what it needs does not come before it."""
    link: Array
    """The place in `links` of the one that takes its result; -1 where no other rank needs it."""
    links: tuple[tuple[int, int], ...]
    """Sender and receiver of each link in use; the two directions are two links."""

    @property
    def num_actions(self) -> int:
        """Actions of all ranks."""
        return self.first[-1]

    @property
    def nothing(self) -> int:
        """What `need` says of an action that awaits no other rank."""
        return self.num_actions

    @property
    def never(self) -> int:
        """What `need` says of an action that can never start."""
        return self.num_actions + 1


def encode(schedule: Schedule, num_stages: int, pipeline_starts: Sequence[int] = (0,)) -> Actions:
    """Number the actions of `schedule` and find what each awaits.

    `pipeline_starts` are the stages that are the first of a pipeline: (0,), or (0, k) where stages k
    and on are a second pipeline of their own.
    """
    first = (0, *itertools.accumulate(map(len, schedule)))
    rank = np.repeat(np.arange(len(schedule)), np.diff(first))
    stage, op, microbatch = _columns(schedule, first[-1])
    need = _needs(stage, op, microbatch, rank, num_stages, pipeline_starts)
    link, links = _links(rank, need, len(schedule))
    return Actions(schedule, first, rank, 4 * stage + op, microbatch, need, link, links)


def _columns(schedule: Schedule, count: int) -> tuple[Array, Array, Array]:
    flat = list(itertools.chain.from_iterable(schedule))
    letters = "".join(map(operator.itemgetter(1), flat)).encode()
    return (
        np.fromiter(map(operator.itemgetter(0), flat), np.int64, count),
        _CODE[np.frombuffer(letters, np.uint8)],
        np.fromiter(map(operator.itemgetter(2), flat), np.int64, count),
    )


def _needs(
    stage: Array,
    op: Array,
    microbatch: Array,
    rank: Array,
    num_stages: int,
    pipeline_starts: Sequence[int],
) -> Array:
    count = len(stage)
    starts = np.zeros(num_stages + 1, dtype=bool)
    starts[[*pipeline_starts, num_stages]] = True
    width = int(microbatch.max(initial=-1)) + 1
    place = np.full((num_stages + 1, 3, width + 1), count + 1)
    here = np.arange(count)
    place[stage, _PHASE[op], microbatch] = here
    need = np.full(count, count)
    forward = (op == F) & ~starts[stage]
    need[forward] = place[stage[forward] - 1, 0, microbatch[forward]]
    backward = ((op == B) | (op == I)) & ~starts[stage + 1]
    need[backward] = place[stage[backward] + 1, 1, microbatch[backward]]
    own = np.full(count, count)
    later = op != F
    own[later] = place[stage[later], _PHASE[op[later]] - 1, microbatch[later]]
    # What the own rank makes is there when the action's turn comes, if it stands before it.
    ranks = np.append(rank, [-1, -1])
    local = ranks[need] == rank
    need[local] = np.where(need < here, count, count + 1)[local]
    need[later & ((ranks[own] != rank) | (own >= here))] = count + 1
    return need


def _links(rank: Array, need: Array, num_ranks: int) -> tuple[Array, tuple[tuple[int, int], ...]]:
    link = np.full(len(rank), -1)
    receiver = np.flatnonzero(need < len(rank))
    sender = need[receiver]
    pair = rank[sender] * num_ranks + rank[receiver]
    used, link[sender] = np.unique(pair, return_inverse=True)
    return link, tuple((int(p) // num_ranks, int(p) % num_ranks) for p in used)


def refuse_deadlock(schedule: Schedule, done: Sequence[int]) -> None:
    """Raise ScheduleError, naming every blocked rank and its action, unless `done` counts all
    actions of each rank."""
    stuck = [
        f"rank {rank} on {order[at]}"
        for rank, (order, at) in enumerate(zip(schedule, done, strict=True))
        if at < len(order)
    ]
    if stuck:
        raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")
