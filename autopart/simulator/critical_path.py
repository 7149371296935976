"""The critical path of a simulated step: the chain of seconds that makes it as long as it is.

It is read backwards. The last rank to finish ends with its syncs and its update. Each action before
starts when its rank is free, or when an awaited result arrives, whichever is later: that one is on the path.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from autopart.simulator.timeline import Timeline, optimizer_span

Use = Literal["compute", "send", "sync", "update", "wait", "shared state"]
"""What seconds of the path are spent on. `wait` is the rest, such as a send that waits for its receiver.

`shared state` are gathers and reductions that compute does not hide."""


class PathPiece(NamedTuple):
    """Consecutive seconds on the critical path."""

    start: float
    """Seconds since the step began."""
    end: float
    """Seconds since the step began."""
    use: Use
    """What they are spent on."""
    stage: int
    """The stage that computes or sends; -1 for syncs, updates and waits."""
    rank: int
    """The rank that spends them."""


def critical_path(timeline: Timeline) -> tuple[PathPiece, ...]:
    """The pieces of the critical path in order, from 0 to the makespan without a gap."""
    ends = timeline.rank_end
    rank = max(range(len(ends)), key=ends.__getitem__)
    pieces: list[PathPiece] = []
    start, end = optimizer_span(timeline, rank)
    _take(pieces, end, ends[rank], "shared state", -1, rank)
    _take(pieces, start, end, "update", -1, rank)
    _take(pieces, timeline.sync_end[rank], start, "shared state", -1, rank)
    rank, until = _before_syncs(timeline, rank, pieces)
    _walk(timeline, rank, until, pieces)
    return tuple(reversed(pieces))


def _before_syncs(timeline: Timeline, rank: int, pieces: list[PathPiece]) -> tuple[int, float]:
    """The rank whose last action the syncs of `rank` await, and when they start to matter."""
    actions, times = timeline.actions, timeline.times
    last = {
        place: times.end[stop - 1]
        for place, (first, stop) in enumerate(zip(actions.first, actions.first[1:], strict=False))
        if stop > first
    }
    own, end = last[rank], timeline.sync_end[rank]
    if not timeline.syncs[rank] or end <= own:
        return rank, own
    start = max(own, min(one.start for one in timeline.syncs[rank]))
    # A sync starts when the last of its ranks is done; that rank's actions are on the path.
    awaited = min(last, key=lambda place: (abs(last[place] - start), place != rank))
    until = last[awaited]
    _take(pieces, until, end, "sync", -1, rank)
    return awaited, until


def _walk(timeline: Timeline, rank: int, until: float, pieces: list[PathPiece]) -> None:
    """Add the pieces before `until`, the end of the last action on `rank`, latest first."""
    actions, times = timeline.actions, timeline.times
    exposed = timeline.exposed or (0.0,) * actions.num_actions
    awaited: list[tuple[int, int]] = list(zip(actions.need.tolist(), actions.second, strict=False))
    arrival = [*times.arrival, 0.0]
    kinds: Sequence[int] = actions.kind.tolist()
    ranks: Sequence[int] = actions.rank.tolist()
    firsts = set(actions.first)
    at = actions.first[rank + 1] - 1
    while True:
        stage, own = kinds[at] // 4, ranks[at]
        # Step 1: the send that is part of the way, then the compute of the action itself.
        computed = min(until, times.end[at], times.send_start[at])
        _take(pieces, computed, until, "send", stage, own)
        start = times.start[at]
        hidden = max(start, computed - exposed[at])
        _take(pieces, hidden, computed, "shared state", -1, own)
        _take(pieces, start, hidden, "compute", stage, own)
        # Step 2: the later one of the rank's action before and the awaited result; a pair awaits two.
        free = 0.0 if at in firsts else times.end[at - 1]
        need = max(awaited[at], key=arrival.__getitem__)
        arrived = arrival[need]
        before = max(free, arrived)
        _take(pieces, before, start, "wait", -1, own)
        if before <= 0.0:
            return
        at, until = (need, arrived) if arrived > free else (at - 1, free)


def _take(
    pieces: list[PathPiece], start: float, end: float, use: Use, stage: int, rank: int
) -> None:
    """Add a piece if it has any length."""
    if end > start:
        pieces.append(PathPiece(start, end, use, stage, rank))
