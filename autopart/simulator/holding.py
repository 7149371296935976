"""What a rank holds while each of its actions runs, counted from the orders alone.

A receive stands in a rank's order where its message is sent in one imagined run of all ranks, in which
each action takes one round (runtime/execution/messages.py), ranks of earlier stages first: from there on there is
room for it, until its action runs. What arrives for a forward is then part of the stash; a gradient that arrived is held until
the backward that takes it is done. Up to `MAX_SENDS` messages stay until the next one is sent, so that
gradients wait to be gone; activations that are sent are part of the stash, and let go when it is freed.
A gradient for a stage on the same rank is held until its backward is done. None of this depends on a time.
"""

import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from autopart.plan import MemoryUse, MovingBytes
from autopart.schedule import Action, Schedule, StageRanks
from autopart.simulator.actions import Actions, Array, B, I, W, encode
from autopart.simulator.program import rounds

MAX_SENDS = 2
"""Sends under way at once; the next one waits for the oldest to be received."""

Number = Any
"""A whole number, or a numpy array of them, one for each of several partitions."""

KINDS = ("whole", "half", "activations", "gradients", "sent")
"""What is counted of each stage: microbatches past their F and before the end of their B or I, microbatches past
their I and before the end of their W, activations and gradients for which there is room, and gradients made
that are not gone."""
WHOLE, HALF, ACTIVATIONS, GRADIENTS, SENT = range(len(KINDS))

MOST_ROWS = 2000
"""Rows up to which those below others are dropped: comparing takes the square of them."""


class Holding(NamedTuple):
    """What one rank holds at the places of its order where it may hold most."""

    stages: tuple[int, ...]
    """The stages of the rank: the columns."""
    column: Array
    """By place, whose action runs there."""
    op: Array
    counts: Array
    """Shape (places, kinds, columns)."""


class Sizes(NamedTuple):
    """Bytes of one stage, for one microbatch; they may be arrays, one entry for each of several partitions."""

    stash: Number
    waiting: Number
    """From I to W."""
    activations: Number
    """That it receives."""
    gradients: Number
    """That it receives."""
    sent: Number
    """Gradients that it sends."""
    workspace: Number
    """Of F and B."""
    input_grad_workspace: Number
    """Of I."""
    weight_grad_workspace: Number
    """Of W."""


class StageBytes(Protocol):
    """What is read of a plan's stage, as StagePrediction has it."""

    @property
    def stash_bytes(self) -> int: ...
    @property
    def moving(self) -> MovingBytes: ...
    @property
    def memory(self) -> MemoryUse: ...


def sizes_of(stage: StageBytes) -> Sizes:
    """What a plan says of one of its stages."""
    return Sizes(stage.stash_bytes, **msgspec.structs.asdict(stage.moving))


class Peak(NamedTuple):
    """The bytes of one place of an order, of all stages of its rank together."""

    stash: Number
    workspace: Number
    receives: Number
    sends: Number


def one_row(held: int) -> Holding:
    """One stage that keeps `held` microbatches at most, under GPipe and 1F1B: in a backward, with the next
    activation and the gradient there, and two gradients under way."""
    counts = np.array([[[held], [0], [1], [1], [MAX_SENDS]]])
    return Holding((0,), np.array([0]), np.array([B]), counts)


def alone(holding: Holding, stage: int) -> Holding:
    """The places where one stage of a rank runs, with what is held of it."""
    column = holding.stages.index(stage)
    at = holding.column == column
    own = holding.counts[at][:, :, [column]]
    return Holding((stage,), np.zeros(len(own), dtype=np.int64), holding.op[at], own)


def joined(parts: Sequence[Holding]) -> Holding:
    """The places of several ranks that have the same stages."""
    return Holding(
        parts[0].stages,
        np.concatenate([part.column for part in parts]),
        np.concatenate([part.op for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


def at_peak(holding: Holding, sizes: Sequence[Sizes]) -> Peak:
    """What is held where most is held; `sizes` are those of the rank's stages."""
    rows = zip(holding.column.tolist(), holding.op.tolist(), holding.counts.tolist(), strict=True)
    peaks = [_peak(counts, sizes, column, op) for column, op, counts in rows]
    return functools.reduce(_larger, peaks)


def _peak(counts: Sequence[Sequence[int]], sizes: Sequence[Sizes], column: int, op: int) -> Peak:
    """One place, where an action of the stage of a column runs."""

    def bytes_of(kind: int, each: Sequence[Number]) -> Number:
        return sum(n * size for n, size in zip(counts[kind], each, strict=True))

    whole = bytes_of(WHOLE, [of.stash for of in sizes])
    arriving = bytes_of(ACTIVATIONS, [of.activations for of in sizes])
    return Peak(
        stash=whole + bytes_of(HALF, [of.waiting for of in sizes]),
        workspace=workspace_of(sizes[column], op),
        receives=arriving + bytes_of(GRADIENTS, [of.gradients for of in sizes]),
        sends=bytes_of(SENT, [of.sent for of in sizes]),
    )


def _larger(one: Peak, other: Peak) -> Peak:
    more: Number = sum(other) > sum(one)
    if np.ndim(more) == 0:
        return other if more else one
    return Peak(*(np.where(more, b, a) for a, b in zip(one, other, strict=True)))


def workspace_of(stage: Sizes, op: int) -> Number:
    """The transient of an action; `op` is F, B, I or W as a number."""
    if op == I:
        return stage.input_grad_workspace
    return stage.weight_grad_workspace if op == W else stage.workspace


def holdings(schedule: Schedule, stage_ranks: StageRanks) -> tuple[Holding, ...]:
    """What each rank may hold most of; raises ScheduleError on a deadlock."""
    actions = encode(schedule, len(stage_ranks))
    found: list[Holding] = []
    for rank, rows in enumerate(_Walk(actions, stage_ranks).ranks()):
        stages = tuple(s for s, ranks in enumerate(stage_ranks) if rank in ranks)
        found.append(_largest(stages, actions, rank, rows))
    return tuple(found)


def every_row(schedule: Schedule, stage_ranks: StageRanks) -> tuple[Array, ...]:
    """By rank the counts while each of its actions runs, shape (actions, kinds, stages of the rank)."""
    return tuple(_Walk(encode(schedule, len(stage_ranks)), stage_ranks).ranks())


class _Walk:
    """All ranks, action by action."""

    def __init__(self, actions: Actions, stage_ranks: StageRanks) -> None:
        self.actions, self.stage_ranks = actions, stage_ranks
        self.round = rounds(actions)
        self.need = actions.need.tolist()
        self.takers = {p: c for c, p in enumerate(self.need) if p < actions.num_actions}

    def ranks(self) -> list[Array]:
        posts = self._posts()
        return [self._rank(rank, posts[rank]) for rank in range(len(self.actions.schedule))]

    def _posts(self) -> list[list[list[int]]]:
        """By rank and place in its order, the actions that room is made for just ahead of it."""
        first, rank = self.actions.first, self.actions.rank.tolist()
        turn = list(dict.fromkeys(rank for ranks in self.stage_ranks for rank in ranks))
        posts: list[list[list[int]]] = [[[] for _ in order] for order in self.actions.schedule]
        for producer, taker in self.takers.items():
            here, there = rank[taker], rank[producer]
            side = "right" if turn.index(here) < turn.index(there) else "left"
            own = self.round[first[here] : first[here + 1]]
            at = int(np.searchsorted(own, self.round[producer], side=side))
            posts[here][at].append(taker)
        return posts

    def _rank(self, rank: int, posts: Sequence[Sequence[int]]) -> Array:
        first, order = self.actions.first[rank], self.actions.schedule[rank]
        column = {s: at for at, s in enumerate(self._own(rank))}
        now = np.zeros((len(KINDS), len(column)), dtype=np.int64)
        rows = np.zeros((len(order), *now.shape), dtype=np.int64)
        sends: deque[Action] = deque()
        for at, action in enumerate(order):
            for taker in posts[at]:
                arriving = self._action(taker)
                kind = ACTIVATIONS if arriving.op == "F" else GRADIENTS
                now[kind, column[arriving.stage]] += 1
            rows[at] = self._through(now, column, first + at, action, sends)
        return rows

    def _through(
        self,
        now: Array,
        column: dict[int, int],
        number: int,
        action: Action,
        sends: deque[Action],
    ) -> Array:
        """What is held while an action runs; `now` and `sends` are left as they are behind it."""
        stage, op, microbatch = action
        own, arrived = column[stage], self.need[number] < self.actions.num_actions
        if op == "F":
            now[ACTIVATIONS, own] -= arrived
            now[WHOLE, own] += 1
            row = now.copy()
        elif op == "W":
            row = now.copy()
            now[HALF, own] -= 1
        else:
            forward = Action(stage, "F", microbatch)
            if forward in sends:
                sends.remove(forward)
            row = now.copy()
            now[WHOLE, own] -= 1
            now[HALF, own] += op == "I"
            now[GRADIENTS, own] -= arrived
            if not arrived and stage + 1 in column:
                now[SENT, column[stage + 1]] -= 1
            if stage > 0:
                now[SENT, own] += 1
        if number in self.takers:
            sends.append(action)
            if len(sends) > MAX_SENDS:
                gone = sends.popleft()
                now[SENT, column[gone.stage]] -= gone.op != "F"
        return row

    def _own(self, rank: int) -> list[int]:
        return [s for s, ranks in enumerate(self.stage_ranks) if rank in ranks]

    def _action(self, number: int) -> Action:
        rank = int(self.actions.rank[number])
        return self.actions.schedule[rank][number - self.actions.first[rank]]


def _largest(stages: tuple[int, ...], actions: Actions, rank: int, counts: Array) -> Holding:
    """The rows that are not below another one with the same action in every count."""
    kind = actions.kind[actions.first[rank] : actions.first[rank + 1]]
    stage, op = np.divmod(kind, 4)
    width = len(KINDS) * len(stages)
    flat = np.column_stack([np.searchsorted(stages, stage), op, counts.reshape(len(kind), width)])
    rows = np.unique(flat, axis=0)
    if len(rows) <= MOST_ROWS:
        below = (rows[:, None, 2:] <= rows[None, :, 2:]).all(axis=-1)
        below &= (rows[:, None, :2] == rows[None, :, :2]).all(axis=-1)
        rows = rows[below.sum(axis=1) == 1]
    shape = (len(rows), len(KINDS), len(stages))
    return Holding(stages, rows[:, 0], rows[:, 1], rows[:, 2:].reshape(shape))
