"""Counts of microbatches and messages on each rank while its actions run.

The counts follow from the orders alone; no time matters.

- Stash: a microbatch counts from the start of F to the end of B. In a split backward it counts up
  to the end of I, and then as waiting up to the end of W.
- Received: a message has room from the place where its send stands in the imagined run
  (`messages`), ranks with earlier stages first. An activation joins the stash when its F runs. A
  gradient stays until its backward is done.
- Sent: a gradient stays until `MAX_SENDS` further messages are sent. A gradient for a stage on the
  same rank stays until that stage's backward is done.
- An overlapped pair counts as its forward and then its backward: at the forward, the backward's
  stash is still there. The transient bytes of both exist at once.
- Made: a stage's parameter gradients do not exist before its first backward or I, and stay from then on.
  That backward makes them layer by layer: it stands as `FIRST` and counts them itself. Before an I or an
  overlapped pair they count whole. A tied parameter's gradient belongs to the rank's last stage with it
  (autopart/cost/repeated_ties.py), so a backward counts for all later stages on its rank too.
- Lent: stash does not count from the action after the one beside its L up to the one before that
  beside its T (`lending`). The places that a rank keeps for others are no counts.
- Outputs: a forward's result counts from the start of F until `MAX_SENDS` further messages are sent,
  or its own gradient is back. A result for a stage on the same rank joins that stage's stash.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.schedules.actions import Action, Schedule, StageRanks, first_backwards
from autopart.schedules.encoding import OPS, Actions, IntArray, encode, every_action, takers
from autopart.schedules.lending import away
from autopart.schedules.rounds import rounds
from autopart.stopping.time_limit import check_time

MAX_SENDS = 2
"""Sends that may be in transit at once. The next one waits until the oldest is received."""

KINDS = ("stash", "waiting", "activations", "gradients", "made", "sent", "outputs")
"""The counts for each stage.

Stash: microbatches past F and before the end of B or I.
Waiting: microbatches past I and before the end of W.
Activations and gradients: messages that have room to arrive.
Made: 1 where the stage's parameter gradients exist.
Sent: gradients that are made and not yet gone.
Outputs: results of forwards for the next stage that are not yet gone.
"""
STASH, WAITING, ACTIVATIONS, GRADIENTS, MADE, SENT, OUTPUTS = range(len(KINDS))

FIRST = len(OPS)
"""The op of a stage's first backward, which makes the parameter gradients. Elsewhere it is a B."""

MOST_ROWS = 2000
"""With more rows, rows below others are kept: comparing all pairs would take too long."""


class InFlight(NamedTuple):
    """Counts for one rank at the places in its order where its memory may peak."""

    stages: tuple[int, ...]
    """The stages on the rank. Each is a column."""
    column: IntArray
    """The column whose action runs at each place, shape (places,)."""
    op: IntArray
    """The op of that action as a number, or `FIRST`, shape (places,)."""
    beside: IntArray
    """The column whose backward runs beside it in an overlapped pair, -1 without; shape (places,)."""
    counts: IntArray
    """The counts at each place, shape (places, kinds, columns)."""


def row_at(in_flight: InFlight, row: int) -> InFlight:
    """One place alone."""
    at = slice(row, row + 1)
    return InFlight(in_flight.stages, *(each[at] for each in in_flight[1:]))


def of_one_stage(in_flight: InFlight, stage: int) -> InFlight:
    """The places where one stage runs, with the counts for that stage: those that no other exceeds.

    A backward that runs beside counts where it is the stage's own.
    """
    column = in_flight.stages.index(stage)
    at = in_flight.column == column
    own = in_flight.counts[at][:, :, column]
    beside = np.where(in_flight.beside[at] == column, 0, -1)
    rows = np.column_stack([np.zeros(len(own), dtype=np.int64), in_flight.op[at], beside, own])
    return _of_rows((stage,), _without_smaller(np.unique(rows, axis=0)))


def joined(parts: Sequence[InFlight]) -> InFlight:
    """The places on several ranks that have the same stages."""
    return InFlight(
        parts[0].stages,
        np.concatenate([part.column for part in parts]),
        np.concatenate([part.op for part in parts]),
        np.concatenate([part.beside for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


def in_flight_by_rank(schedule: Schedule, stage_ranks: StageRanks) -> tuple[InFlight, ...]:
    """The counts for each rank where its memory may peak; raises ScheduleError on a deadlock."""
    actions = encode(schedule, len(stage_ranks))
    found: list[InFlight] = []
    for rank, rows in enumerate(in_flight_at_each_action(actions, stage_ranks)):
        check_time()
        stages = tuple(s for s, ranks in enumerate(stage_ranks) if rank in ranks)
        found.append(_largest(stages, actions, rank, rows))
    return tuple(found)


def in_flight_at_each_action(actions: Actions, stage_ranks: StageRanks) -> tuple[IntArray, ...]:
    """Each rank's counts while its actions run, shape (actions, kinds, stages on the rank)."""
    return tuple(_Counting(actions, stage_ranks).ranks())


class _Counting:
    """Counts rank by rank, action by action."""

    def __init__(self, actions: Actions, stage_ranks: StageRanks) -> None:
        self.actions, self.stage_ranks, self.last = actions, stage_ranks, len(stage_ranks) - 1
        self.away = away(actions.moves, actions.num_actions) if actions.moves else []
        self.each = every_action(actions.schedule)
        self.round = rounds(actions)
        self.need = actions.need.tolist()
        self.takers = takers(actions)

    def ranks(self) -> list[IntArray]:
        posts = self._posts()
        return [self._rank(rank, posts[rank]) for rank in range(len(self.actions.schedule))]

    def _posts(self) -> list[list[list[int]]]:
        """By rank and place in its order, the actions whose messages get room just before it."""
        first, rank = self.actions.first, self.actions.rank.tolist()
        turn = list(dict.fromkeys(rank for ranks in self.stage_ranks for rank in ranks))
        posts: list[list[list[int]]] = [[[] for _ in order] for order in self.actions.schedule]
        for producer, taker in self.takers.items():
            check_time()
            # The room is made where the send stands in the imagined run. In one round, ranks with
            # earlier stages come first.
            here, there = rank[taker], rank[producer]
            side = "right" if turn.index(here) < turn.index(there) else "left"
            own = self.round[first[here] : first[here + 1]]
            at = int(np.searchsorted(own, self.round[producer], side=side))
            posts[here][at].append(taker)
        return posts

    def _rank(self, rank: int, posts: Sequence[Sequence[int]]) -> IntArray:
        check_time()
        first, order = self.actions.first[rank], self.actions.schedule[rank]
        column = {s: at for at, s in enumerate(self._own(rank))}
        now = np.zeros((len(KINDS), len(column)), dtype=np.int64)
        rows = np.zeros((len(order), *now.shape), dtype=np.int64)
        sends: deque[Action] = deque()
        begins = {at: stage for stage, at in first_backwards(order).items()}
        for at, action in enumerate(order):
            if at in begins:
                # A whole backward counts its own gradients itself.
                _make_gradients(now, column, begins[at] + (action.op == "B"))
            # Step 1: make room for the messages that are sent by now.
            for taker in posts[at]:
                arriving = self.each[taker]
                kind = ACTIVATIONS if arriving.op == "F" else GRADIENTS
                now[kind, column[arriving.stage]] += 1
            # Step 2: run the action, and note the counts while it runs.
            rows[at] = self._through(now, column, first + at, action, sends)
            if at in begins:
                _make_gradients(now, column, begins[at])
        if self.away:
            # A rank that lends has one stage.
            rows[:, STASH, 0] -= self.away[first : first + len(order)]
        return rows

    def _through(
        self,
        now: IntArray,
        column: dict[int, int],
        number: int,
        action: Action,
        sends: deque[Action],
    ) -> IntArray:
        """The counts while an action runs; `now` and `sends` become those after the action."""
        stage, op, microbatch = action
        own, arrived = column[stage], self.need[number] < self.actions.num_actions
        if op == "F":
            # The activation that arrived becomes part of the stash before F runs.
            now[ACTIVATIONS, own] -= arrived
            if not arrived and stage - 1 in column:
                now[OUTPUTS, column[stage - 1]] -= 1
            now[STASH, own] += 1
            now[OUTPUTS, own] += stage < self.last
            row = now.copy()
        elif op == "W":
            row = now.copy()
            now[WAITING, own] -= 1
        else:
            # A send of the same microbatch's activation is long received: its gradient is back.
            forward = Action(stage, "F", microbatch)
            if forward in sends:
                sends.remove(forward)
                now[OUTPUTS, own] -= 1
            # While the backward runs, stash and gradient are still there. Then they are freed.
            row = now.copy()
            now[STASH, own] -= 1
            now[WAITING, own] += op == "I"
            now[GRADIENTS, own] -= arrived
            # A gradient from the next stage on the same rank was no message, but stood as sent.
            if not arrived and stage + 1 in column:
                now[SENT, column[stage + 1]] -= 1
            if stage > 0:
                now[SENT, own] += 1
        # Too many sends in transit: wait until the oldest is received. Its tensors are then gone.
        if number in self.takers:
            sends.append(action)
            if len(sends) > MAX_SENDS:
                gone = sends.popleft()
                now[OUTPUTS if gone.op == "F" else SENT, column[gone.stage]] -= 1
        return row

    def _own(self, rank: int) -> list[int]:
        return [s for s, ranks in enumerate(self.stage_ranks) if rank in ranks]


def _make_gradients(now: IntArray, column: dict[int, int], first: int) -> None:
    """Count the gradients of all stages on the rank from stage `first` on."""
    for stage, own in column.items():
        now[MADE, own] |= stage >= first


def _largest(stages: tuple[int, ...], actions: Actions, rank: int, counts: IntArray) -> InFlight:
    """The distinct rows.

    A row is dropped if another row for the same stages and op has no smaller count.
    """
    first, stop = actions.first[rank : rank + 2]
    stage, op = np.divmod(actions.kind[first:stop], 4)
    column = np.searchsorted(stages, stage)
    order = actions.schedule[rank]
    whole = [at for at in first_backwards(order).values() if order[at].op == "B"]
    op[whole] = FIRST
    pairs = actions.pairs[(actions.pairs >= first) & (actions.pairs < stop)] - first
    beside = np.full(len(op), -1)
    beside[pairs] = column[pairs + 1]
    width = len(KINDS) * len(stages)
    flat = np.column_stack([column, op, beside, counts.reshape(len(op), width)])
    return _of_rows(stages, _without_smaller(np.unique(flat, axis=0)))


def _without_smaller(rows: IntArray) -> IntArray:
    """The rows with no larger row of the same stages and op; all of them where they are too many."""
    if len(rows) > MOST_ROWS:
        return rows
    below = (rows[:, None, 3:] <= rows[None, :, 3:]).all(axis=-1)
    below &= (rows[:, None, :3] == rows[None, :, :3]).all(axis=-1)
    return rows[below.sum(axis=1) == 1]


def _of_rows(stages: tuple[int, ...], rows: IntArray) -> InFlight:
    """The counts in rows of column, op, column beside, and the counts themselves."""
    shape = (len(rows), len(KINDS), len(stages))
    return InFlight(stages, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:].reshape(shape))
