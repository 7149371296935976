"""A schedule as flat arrays: the result that each action awaits, and the link that carries it.

This file alone says what an action needs, on one microbatch:

    F on stage s         F on stage s - 1, unless s is the first stage
    B or I on stage s    F on stage s; and B or I on stage s + 1, unless s is the last stage
    W on stage s         I on stage s

An overlapped pair starts when both its actions could. Its forward stands for both: it awaits what
the backward awaits too, and both results are there at its end. The backward follows at once.

Actions are numbered rank after rank, each rank in its order. A result made on the same rank must
stand earlier in the order, and then nothing waits for it. So an action awaits at most one other
rank, and a pair at most two. L and T await nothing and give no result: they are set apart before
actions get numbers (`lending`).
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Schedule, paired_forwards
from autopart.schedules.lending import StashMove, computing, stash_moves

IntArray = npt.NDArray[np.int64]
"""Whole numbers."""

F, B, I, W = range(4)
"""Ops as numbers; an action's kind is 4 x its stage + its op."""
OPS = "FBIW"
"""The letters of the ops that compute, by number."""

_CODE = np.full(256, -1)
_CODE[[ord(op) for op in OPS]] = range(4)
_PHASE = np.array([0, 1, 1, 2])
"""The turn of each op in a microbatch's life on a stage. B and I share one: only one runs."""


class Neighbours(NamedTuple):
    """The stages that exchange results, for each kind of action (4 x stage + op).

    Both actions run the same microbatch in the same direction: F hands over to F, and B or I to B
    or I.
    """

    awaited: tuple[int, ...]
    """The stage whose result this kind of action awaits; -1 where it awaits none."""
    awaiting: tuple[int, ...]
    """The stage that awaits the result from this kind of action; -1 where none does."""


@functools.lru_cache(maxsize=256)
def neighbours(num_stages: int) -> Neighbours:
    """The stages that wait for each other. The table needs no orders, so generators can use it."""
    awaited: list[int] = []
    awaiting: list[int] = []
    for stage in range(num_stages):
        before = stage - 1
        after = -1 if stage + 1 == num_stages else stage + 1
        # In the order F, B, I, W.
        awaited += [before, after, after, -1]
        awaiting += [after, before, before, -1]
    return Neighbours(tuple(awaited), tuple(awaiting))


class Numbered(NamedTuple):
    """The actions of a schedule in columns; arrays have one entry for each action."""

    each: Sequence[Action]
    """All actions, by number."""
    first: tuple[int, ...]
    """Rank r runs the actions from first[r] up to first[r + 1], without the latter."""
    rank: IntArray
    stage: IntArray
    op: IntArray
    microbatch: IntArray
    pairs: IntArray
    """The numbers of the forwards at which overlapped pairs begin."""


def every_action(schedule: Schedule) -> list[Action]:
    """All actions, in the order of their numbers."""
    return list(itertools.chain.from_iterable(schedule))


def number_actions(schedule: Schedule) -> Numbered:
    """Number the actions rank after rank. Any actions but L and T will do, in any order."""
    first = (0, *itertools.accumulate(map(len, schedule)))
    each = every_action(schedule)
    letters = "".join(map(operator.itemgetter(1), each)).encode()
    return Numbered(
        each=each,
        first=first,
        rank=np.repeat(np.arange(len(schedule)), np.diff(first)),
        stage=np.fromiter(map(operator.itemgetter(0), each), np.int64, len(each)),
        op=_CODE[np.frombuffer(letters, np.uint8)],
        microbatch=np.fromiter(map(operator.itemgetter(2), each), np.int64, len(each)),
        pairs=np.array(paired_forwards(each), dtype=np.int64),
    )


class Actions(NamedTuple):
    """A schedule in numbers; arrays have one entry for each action."""

    schedule: Schedule
    first: tuple[int, ...]
    """Rank r runs the actions from first[r] up to first[r + 1], without the latter."""
    rank: IntArray
    kind: IntArray
    """4 x stage + op."""
    microbatch: IntArray
    need: IntArray
    """The action on another rank whose result this action awaits.

    `nothing` where it awaits none; `never` where a needed action is missing, or stands too late on
    the same rank.
    """
    link: IntArray
    """The place in `links` of the link that carries the result; -1 where no other rank needs it."""
    links: tuple[tuple[int, int], ...]
    """Sender and receiver for each link in use. Each direction is a link of its own."""
    pairs: IntArray
    """The numbers of the forwards at which overlapped pairs begin; each backward follows."""
    pair_kinds: tuple[tuple[int, int], ...]
    """The stages of the forward and of the backward, for each kind of pair."""
    row: IntArray
    """The row of each action's seconds (`simulator.costs`): its kind.

    A pair's forward has the row of its kind of pair, behind all kinds. Its backward has the last row,
    which is 0."""
    moves: tuple[StashMove, ...] = ()
    """The stash that is lent and taken back, rank after rank in their orders; actions leave it out."""

    @property
    def num_actions(self) -> int:
        """Actions on all ranks."""
        return self.first[-1]

    @property
    def nothing(self) -> int:
        """The entry in `need` for an action that awaits no other rank."""
        return self.num_actions

    @property
    def never(self) -> int:
        """The entry in `need` for an action that can never start."""
        return self.num_actions + 1

    @property
    def second(self) -> list[int]:
        """What each action awaits besides `need`: `nothing`, but for forwards of overlapped pairs."""
        found = np.full(self.num_actions, self.nothing)
        found[self.pairs] = self.need[self.pairs + 1]
        return found.tolist()

    @property
    def begins_pair(self) -> bytes:
        """For each action 1 where an overlapped pair begins, else 0."""
        found = np.zeros(self.num_actions, dtype=np.uint8)
        found[self.pairs] = 1
        return found.tobytes()


def encode(schedule: Schedule, num_stages: int) -> Actions:
    """Number the actions in `schedule` and find the result that each awaits."""
    bare = computing(schedule)
    moves = () if bare is schedule else stash_moves(schedule)
    return connect(bare, number_actions(bare), num_stages)._replace(moves=moves)


def connect(schedule: Schedule, numbered: Numbered, num_stages: int) -> Actions:
    """`encode` for actions that have their numbers already."""
    _, first, rank, stage, op, microbatch, pairs = numbered
    kind = 4 * stage + op
    need = _needs(numbered, kind, num_stages)
    link, links = _links(rank, need, len(schedule))
    pair_kinds, row = _rows(numbered, kind, num_stages)
    return Actions(
        schedule, first, rank, kind, microbatch, need, link, links, pairs, pair_kinds, row
    )


def _rows(
    numbered: Numbered, kind: IntArray, num_stages: int
) -> tuple[tuple[tuple[int, int], ...], IntArray]:
    """The kinds of overlapped pairs, and the row of each action's seconds.

    Raises ScheduleError where a pair is no forward beside a whole backward of another microbatch.
    """
    pairs = numbered.pairs
    if not len(pairs):
        return (), kind
    # Step 1: refuse a pair that no rank can run together.
    after = np.minimum(pairs + 1, len(kind) - 1)
    whole = (
        (after > pairs) & (numbered.op[after] == B) & (numbered.rank[after] == numbered.rank[pairs])
    )
    for at in pairs[~whole | (numbered.microbatch[after] == numbered.microbatch[pairs])][
        :1
    ].tolist():
        raise ScheduleError(
            f"rank {numbered.rank[at]} runs {numbered.each[at]} as an overlapped pair, and no whole "
            "backward of another microbatch follows it"
        )
    # Step 2: number the kinds of pairs, by the stages of their forward and their backward.
    stages = numbered.stage[pairs] * num_stages + numbered.stage[after]
    kinds, which = np.unique(stages, return_inverse=True)
    row = kind.copy()
    row[pairs] = 4 * num_stages + which
    row[after] = 4 * num_stages + len(kinds)
    return tuple(divmod(int(both), num_stages) for both in kinds), row


def takers(actions: Actions) -> dict[int, int]:
    """The handovers between ranks: the action that awaits a result, by the action that makes it."""
    return {
        giver: taker
        for taker, giver in enumerate(actions.need.tolist())
        if giver < actions.num_actions
    }


def _needs(numbered: Numbered, kind: IntArray, num_stages: int) -> IntArray:
    _, _, rank, stage, op, microbatch, _ = numbered
    count = len(stage)
    nothing, never = count, count + 1
    here, phase = np.arange(count), _PHASE[op]
    # Step 1: note where each action stands, by stage, phase and microbatch. The stage -1 in
    # `neighbours` is the last row, which stands for `nothing`.
    width = int(microbatch.max(initial=0)) + 1
    place = np.full((num_stages + 1, 3, width), never)
    place[num_stages] = nothing
    place[stage, phase, microbatch] = here
    # Step 2: look up the result from the neighbouring stage.
    awaited = np.array(neighbours(num_stages).awaited)
    need = place[awaited[kind], phase, microbatch]
    # Step 3: a result from the same rank needs no wait if it stands earlier in the order.
    local = np.append(rank, [-1, -1])[need] == rank
    need[local] = np.where(need < here, nothing, never)[local]
    # Step 4: the phase before on the same stage (F before B and I, I before W) must stand earlier
    # too.
    later = np.flatnonzero(op != F)
    own = place[stage[later], phase[later] - 1, microbatch[later]]
    early = (own < later) & (rank[np.minimum(own, count - 1)] == rank[later])
    need[later[~early]] = never
    return need


def _links(
    rank: IntArray, need: IntArray, num_ranks: int
) -> tuple[IntArray, tuple[tuple[int, int], ...]]:
    # A link is a pair of ranks that some result crosses. Pairs are numbered in ascending order.
    link = np.full(len(rank), -1)
    receiver = np.flatnonzero(need < len(rank))
    sender = need[receiver]
    pair = rank[sender] * num_ranks + rank[receiver]
    used, link[sender] = np.unique(pair, return_inverse=True)
    return link, tuple((int(p) // num_ranks, int(p) % num_ranks) for p in used)


def refuse_deadlock(schedule: Schedule, done: Sequence[int]) -> None:
    """Raise ScheduleError unless each rank is done with its order; `done` counts its actions.

    The message names every blocked rank and the action that it stands at.
    """
    stuck = [
        f"rank {rank} on {order[at]}"
        for rank, (order, at) in enumerate(zip(schedule, done, strict=True))
        if at < len(order)
    ]
    if stuck:
        raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")
