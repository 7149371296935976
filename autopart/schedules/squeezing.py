"""A building block that each microbatch repeats, squeezed at both ends
(Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024).

Rank r runs the stages r and 2 k - 1 - r. Time counts in slots, one for each F, I or W. The orders
are made in four steps:

    repeat     each microbatch repeats the block of F and I, 6 slots after the one before
    weights    W takes the rank's first idle slots behind its I
    squeeze    in the order of slots, each action of warm-up and drain moves to its rank's earliest
               idle slot behind its needs, unless the rank would exceed the block's microbatches
               in flight
    again      W leaves, F and I of the drain are squeezed once more, and W takes the idle slots

Between the first I of stage 0 and the last F of stage 0 the block stays as it is.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from autopart.schedules.actions import Action, Op, Order, Schedule

PERIOD = 6

DOWN, UP, BACK_DOWN, BACK_UP, WEIGHT = range(5)
"""F on the way down and up, I on the way down (the stages behind) and up (the stages ahead), W."""

FIXED = (DOWN, UP, BACK_DOWN, BACK_UP)

Block = Sequence[tuple[int, int, int, int]]
"""For each rank the slots of microbatch 0: F down, F up, I down, I up."""

KEPT = {DOWN: 1, UP: 1, BACK_DOWN: 0, BACK_UP: 0, WEIGHT: -1}
"""Microbatches in flight that each kind of action adds."""


Rows = list[list[list[int]]]
"""Slots by rank, kind, and number of the microbatch; for W by number of the I."""


class _Place(NamedTuple):
    """The n-th action of a kind on a rank, in its slot. Tuples sort by slot, then rank."""

    slot: int
    rank: int
    kind: int
    n: int


def squeezed(block: Block, num_microbatches: int) -> Schedule:
    """The orders of a block on all ranks."""
    rows = [
        [[first + PERIOD * m for m in range(num_microbatches)] for first in own] for own in block
    ]
    most = max(_peak([*row, _weights(row)]) for row in rows)
    rows = [[*row, _weights(row)] for row in rows]
    _Squeezing(rows, most, warmup=True).run()
    _start_early(rows)
    rows = [row[:WEIGHT] for row in rows]
    most = max(_peak([*row, _weights(row)]) for row in rows)
    _Squeezing(rows, most, warmup=False).run()
    rows = [[*row, _weights(row)] for row in rows]
    _start_early(rows)
    return tuple(_order(row[:WEIGHT], rank, len(rows)) for rank, row in enumerate(rows))


def _weights(row: Sequence[Sequence[int]]) -> list[int]:
    """The slots for W: the first idle ones behind each I."""
    found: list[int] = []
    kinds = {slot: kind for kind in FIXED for slot in row[kind]}
    waiting, slot = 0, 0
    while len(found) < len(row[BACK_DOWN]) + len(row[BACK_UP]):
        kind = kinds.get(slot)
        if kind in (BACK_DOWN, BACK_UP):
            waiting += 1
        elif kind is None and waiting:
            found.append(slot)
            waiting -= 1
        slot += 1
    return found


def _peak(row: Sequence[Sequence[int]]) -> int:
    """The most microbatches in flight on a rank, counted for each of its stages."""
    events = sorted((slot, KEPT[kind]) for kind, slots in enumerate(row) for slot in slots)
    return max(accumulate(change for _, change in events), default=0)


def _places(rows: Rows) -> list[_Place]:
    """All actions in the order of their slots."""
    return sorted(
        _Place(slot, rank, kind, n)
        for rank, row in enumerate(rows)
        for kind, slots in enumerate(row)
        for n, slot in enumerate(slots)
    )


def _start_early(rows: Rows) -> None:
    """Start each action as early as its rank's order and its needs allow."""
    free = [0] * len(rows)
    for place in _places(rows):
        slot = max(free[place.rank], _needs_done(rows, place))
        rows[place.rank][place.kind][place.n] = slot
        free[place.rank] = slot + 1


class _Squeezing:
    """Actions of warm-up and drain move to earlier slots."""

    def __init__(self, rows: Rows, most: int, *, warmup: bool) -> None:
        self.rows, self.most, self.warmup = rows, most, warmup
        self.taken: list[set[int]] = [set() for _ in rows]

    def run(self) -> None:
        """Squeeze the rows in place."""
        last = len(self.rows[0][DOWN]) - 1
        started = drains = False
        for place in _places(self.rows):
            started = started or (place.kind == BACK_UP and place.rank == 0)
            if drains or (self.warmup and not started):
                self._squeeze(place)
            # The drain begins behind the last F of stage 0, if the first I there came before.
            drains = drains or (started and place.kind == DOWN and place.n == last)
            self.taken[place.rank].add(self.rows[place.rank][place.kind][place.n])

    def _squeeze(self, place: _Place) -> None:
        slot, rank, kind, n = place
        slots = self.rows[rank][kind]
        for earlier in range(_needs_done(self.rows, place), slot):
            if earlier not in self.taken[rank]:
                slots[n] = earlier
                if self._fits(rank, kind):
                    return
        slots[n] = slot

    def _fits(self, rank: int, kind: int) -> bool:
        row = self.rows[rank]
        if len(row) > WEIGHT:
            # An earlier I or W never adds to the microbatches in flight.
            return kind not in (DOWN, UP) or _peak(row) <= self.most
        return _peak([*row, _weights(row)]) <= self.most


def _needs_done(rows: Rows, place: _Place) -> int:
    """The first slot behind everything that an action needs."""
    _, rank, kind, n = place
    row = rows[rank]
    done = [-1]
    if kind in (DOWN, BACK_DOWN) and rank > 0:
        done.append(rows[rank - 1][kind][n])
    if kind in (UP, BACK_UP) and rank + 1 < len(rows):
        done.append(rows[rank + 1][kind][n])
    if kind in (UP, BACK_DOWN, BACK_UP):
        done.append(row[kind - 1][n])
    if kind == WEIGHT:
        done.append(sorted(row[BACK_DOWN] + row[BACK_UP])[n])
    if n:
        done.append(row[kind][n - 1])
    return 1 + max(done)


def _order(row: Sequence[Sequence[int]], rank: int, num_ranks: int) -> Order:
    """One rank's actions by slot. Of two stages whose W wait, the later one's runs first."""
    late = 2 * num_ranks - 1 - rank
    stages: tuple[tuple[int, Op], ...] = ((rank, "F"), (late, "F"), (late, "I"), (rank, "I"))
    fixed = {
        slot: Action(*stages[kind], microbatch)
        for kind in FIXED
        for microbatch, slot in enumerate(row[kind])
    }
    waiting: dict[int, list[Action]] = {late: [], rank: []}
    order: list[Action] = []
    for slot in sorted([*fixed, *_weights(row)]):
        if slot in fixed:
            action = fixed[slot]
            if action.op == "I":
                waiting[action.stage].append(Action(action.stage, "W", action.microbatch))
        else:
            action = (waiting[late] or waiting[rank]).pop(0)
        order.append(action)
    return tuple(order)
