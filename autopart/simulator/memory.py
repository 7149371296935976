"""What a rank holds: the most that an order can need, and all bytes over time.

A microbatch's stash is there from the start of its F to the end of its B. Where the backward is
split, what W needs stays from the end of I to the end of W. How much stash there is after each action
depends on the order alone, not on any time, except for what is on the host.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from autopart.plan import LASTING, MemoryUse
from autopart.schedule import Order, StageRanks
from autopart.simulator.actions import Array, B, F, I, W
from autopart.simulator.clock import HostMove
from autopart.simulator.contention import HostTraffic
from autopart.simulator.timeline import Timeline

Number = Any
"""A float or int, or a numpy array of them, one for each of several partitions."""

_CHANGE = {"F": (1, 0), "B": (-1, 0), "I": (-1, 1), "W": (0, -1)}


class Held(NamedTuple):
    """What an order holds at the places where it may hold most, shape (places, stages): none of them
    is below another one in everything."""

    stages: tuple[int, ...]
    """The stages of the order's actions: the columns."""
    whole: Array
    """Microbatches past their F and before their B or I."""
    half: Array
    """Microbatches past their I and before their W."""


def held_counts(order: Order) -> Held:
    """The microbatches of each stage that `order` holds at once."""
    stages = tuple(sorted({action.stage for action in order}))
    column = {stage: place for place, stage in enumerate(stages)}
    change = np.zeros((len(order), 2, len(stages)), dtype=int)
    for place, (stage, op, _) in enumerate(order):
        change[place, :, column[stage]] = _CHANGE[op]
    forward = np.array([*(action.op == "F" for action in order), False])
    # Only an F adds bytes, so the most is held after the last of several in a row.
    peaks = np.flatnonzero(forward[:-1] & ~forward[1:])
    upto = np.cumsum(change, axis=0).reshape(len(order), 2 * len(stages))[peaks]
    rows = _largest_rows(np.unique(upto, axis=0))
    whole, half = rows[:, : len(stages)], rows[:, len(stages) :]
    return Held(stages, whole, half)


def _largest_rows(rows: Array) -> Array:
    """The rows that are not below another one in every column; `rows` has no row twice."""
    below = (rows[:, None] <= rows[None]).all(axis=-1).sum(axis=1) > 1
    return rows[~below]


def peak_stash(
    held: Held, stash_bytes: Sequence[Number], kept_for_weights: Sequence[Number] | None = None
) -> Number:
    """The most stash, in bytes, that an order needs at once.

    `stash_bytes` of every stage, for one microbatch, plain or an array over partitions;
    `kept_for_weights` is the part that stays between I and W, all of it where it is None.
    """
    kept = stash_bytes if kept_for_weights is None else kept_for_weights
    each = [*(stash_bytes[s] for s in held.stages), *(kept[s] for s in held.stages)]
    counts = np.concatenate([held.whole, held.half], axis=1)
    totals = np.tensordot(counts, np.array(np.broadcast_arrays(*each)), axes=1)
    return totals.max(axis=0, initial=0)


class StageBytes(Protocol):
    """What the simulator reads of a stage's memory, as StagePrediction has it."""

    @property
    def stash_bytes(self) -> int: ...
    @property
    def memory(self) -> MemoryUse: ...


class MemoryCurve(NamedTuple):
    """The bytes of one rank over time."""

    times: Array
    """Seconds from the start of the step, rising; what is held changes there."""
    stash: Array
    """Bytes from each of the times on."""
    workspace: Array
    constant: dict[str, int]
    """Bytes of the other kinds; over all stages of the rank, the reserve once."""

    @property
    def peak_bytes(self) -> int:
        """The most that the rank holds at once, of all kinds together."""
        moving = int((self.stash + self.workspace).max(initial=0))
        return moving + sum(self.constant.values())


def memory_over_time(
    timeline: Timeline,
    ranks: StageRanks,
    stages: Sequence[StageBytes],
    *,
    kept_for_weights: Sequence[int] | None = None,
    host: Sequence[HostTraffic] | None = None,
) -> tuple[MemoryCurve, ...]:
    """The bytes of every rank: stash as its microbatches come and go, the workspace of the stage whose
    action runs, and what does not change. `kept_for_weights` is as in `peak_stash`, `host` as in
    `simulate`."""
    stash = np.array([stage.stash_bytes for stage in stages])
    kept = stash if kept_for_weights is None else np.asarray(kept_for_weights)
    moved: dict[int, list[HostMove]] = {}
    for move in timeline.times.host_moves:
        moved.setdefault(move.rank, []).append(move)
    curves: list[MemoryCurve] = []
    for rank in range(len(timeline.actions.schedule)):
        own = [stage for stage, on in zip(stages, ranks, strict=True) if rank in on]
        events = [*_action_events(timeline, rank, stages, stash, kept)]
        for move in moved.get(rank, []):
            assert host is not None
            events.append(_host_event(timeline, move, host))
        curves.append(_curve(np.concatenate(events), _constant(own)))
    return tuple(curves)


def _constant(own: Sequence[StageBytes]) -> dict[str, int]:
    held = {kind: sum(getattr(stage.memory, kind) for stage in own) for kind in LASTING}
    return {**held, "reserve": max((stage.memory.reserve for stage in own), default=0)}


def _action_events(
    timeline: Timeline, rank: int, stages: Sequence[StageBytes], stash: Array, kept: Array
) -> tuple[Array, Array]:
    """Rows of (time, turn on an equal time, change of stash, change of workspace): the starts of a
    rank's actions, and their ends."""
    first, stop = timeline.actions.first[rank : rank + 2]
    stage, op = np.divmod(timeline.actions.kind[first:stop], 4)
    room = np.array([s.memory.workspace for s in stages])[stage]
    taken = np.where(op == F, stash[stage], 0)
    freed = np.select(
        [op == B, op == I, op == W], [stash[stage], stash[stage] - kept[stage], kept[stage]], 0
    )
    starts = np.array(timeline.times.start[first:stop])
    ends = np.array(timeline.times.end[first:stop])
    turn = 2 * np.arange(len(op))
    return (
        np.column_stack([starts, turn, taken, room]),
        np.column_stack([ends, turn + 1, -freed, -room]),
    )


def _host_event(timeline: Timeline, move: HostMove, host: Sequence[HostTraffic]) -> Array:
    stage, op = divmod(int(timeline.actions.kind[move.action]), 4)
    size = host[stage].num_bytes
    # Leaving, the bytes are held until they have left; coming back, they need their place at once.
    row = [move.end, -1.0, -size, 0.0] if op == F else [move.start, np.inf, size, 0.0]
    return np.array([row])


def _curve(events: Array, constant: dict[str, int]) -> MemoryCurve:
    order = np.lexsort((events[:, 1], events[:, 0]))
    changes = np.cumsum(events[order, 2:], axis=0).astype(np.int64)
    return MemoryCurve(events[order, 0], changes[:, 0], changes[:, 1], constant)


def most_held(order: Order) -> Counter[int]:
    """For each stage of `order`, the most microbatches past their F and before their B, or W."""
    held = held_counts(order)
    most = (held.whole + held.half).max(axis=0, initial=0)
    return Counter(dict(zip(held.stages, most.tolist(), strict=True)))
