"""Why ranks are idle: every idle second of every rank in use has one cause.

At an idle instant a rank waits for its next action X, and X for what was not there yet. The walk goes
back from X to what happens at that instant:

- What X awaits is on its way, or queues for its link: **send**. (Where sends do not overlap compute,
  its sender is busy with it.) The stash of X is still on the host or on its way: **host link**.
- What X awaits is being computed: a wait for **compute**.
- What X awaits, Y, has not started. Where Y lacks its own input, the walk goes on from Y. Where Y has
  it and its rank runs something else: compute. Where that rank is idle, too, because its order has
  another action Z first, the walk goes on from Z.

The last seconds of a gap are **memory cap**, as many as it would be shorter if no forward were held
back: a forward is held back while it has its input and its rank is idle, but has a backward to do
first, as orders ask that let only so many microbatches be in flight. No rank has more of them than
the step would be shorter by. `memory_cap.py` computes it.

Waits for compute before a rank's first action are **fill**. Of those after it, as many seconds as the
rank has less work (actions, in the whole step) than the busiest rank are **imbalance**, the earliest
ones; the rest is **dependency latency**: what it waits for takes its time on ranks that have no more
to do than it has. After a rank's last action, idle seconds while any rank still runs an action are
**drain**, and those later are **sync**: only syncs and optimizer steps of other ranks are left.

The pieces of a gap meet end to end, so on costs that are whole numbers the causes add up to the idle
time exactly; on others within `ROUNDING` of the makespan.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from autopart.simulator.memory_cap import capped_times
from autopart.simulator.timeline import Timeline, busy_times, used_ranks

Cause = Literal[
    "fill",
    "drain",
    "imbalance",
    "dependency latency",
    "send",
    "sync",
    "memory cap",
    "host link",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
ROUNDING = 1e-9
"""Share of the makespan by which sums of floats may differ from it for each rank."""

_COMPUTE = "compute"


class Idle(NamedTuple):
    """A stretch in which a rank is idle for one cause; seconds from the start of the step."""

    start: float
    end: float
    cause: Cause


class _Piece(NamedTuple):
    start: float
    end: float
    cause: str


def idle_pieces(timeline: Timeline) -> tuple[tuple[Idle, ...], ...]:
    """For each rank its idle seconds from the start to the end of the step, in order, by cause; none
    for a rank that is not used."""
    walk = _Walk(timeline)
    busy = busy_times(timeline.actions, timeline.times)
    pieces: list[tuple[Idle, ...]] = [()] * len(busy)
    last = max((timeline.times.end[i - 1] for i in timeline.actions.first[1:] if i), default=0.0)
    for rank in used_ranks(timeline):
        first, stop = timeline.actions.first[rank : rank + 2]
        before = _named(walk.gap(first, 0.0), "fill")
        free = timeline.times.end[first]
        gaps: list[_Piece] = []
        for i in range(first + 1, stop):
            if timeline.times.start[i] > free:
                gaps += walk.gap(i, free)
            free = timeline.times.end[i]
        less_work = max(busy) - busy[rank]
        if less_work <= ROUNDING * timeline.makespan:
            less_work = 0.0
        within = _split_waits(gaps, less_work)
        pieces[rank] = (*before, *within, *_after_actions(timeline, rank, free, last))
    return tuple(pieces)


def idle_times(timeline: Timeline) -> tuple[dict[Cause, float], ...]:
    """For each rank the idle seconds of each cause."""
    return tuple(sums_by_cause(own) for own in idle_pieces(timeline))


def sums_by_cause(pieces: tuple[Idle, ...]) -> dict[Cause, float]:
    """The seconds of each cause."""
    times: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    for start, end, cause in pieces:
        times[cause] += end - start
    return times


def _named(pieces: list[_Piece], waits: Cause) -> Iterator[Idle]:
    """The pieces as they are, waits for compute by the name `waits`."""
    for start, end, cause in pieces:
        name = waits if cause == _COMPUTE else cause
        yield Idle(start, end, name)  # pyright: ignore[reportArgumentType]


def _split_waits(pieces: list[_Piece], less_work: float) -> Iterator[Idle]:
    """The pieces, the first `less_work` seconds of waits for compute as imbalance."""
    left = less_work
    for piece in pieces:
        if piece.cause != _COMPUTE:
            yield from _named([piece], "imbalance")
            continue
        middle = min(piece.end, piece.start + left)
        if middle > piece.start:
            yield Idle(piece.start, middle, "imbalance")
        if piece.end > middle:
            yield Idle(middle, piece.end, "dependency latency")
        left -= middle - piece.start


def _after_actions(timeline: Timeline, rank: int, free: float, last: float) -> Iterator[Idle]:
    """The idle seconds of a rank after its last action, which ends at `free`; the last action of
    all ends at `last`."""
    gaps: list[tuple[float, float]] = []
    for sync in timeline.syncs[rank]:
        gaps.append((free, sync.start))
        free = max(free, sync.end)
    gaps.append((timeline.rank_end[rank], timeline.makespan))
    for start, end in gaps:
        middle = min(max(start, last), end)
        if middle > start:
            yield Idle(start, middle, "drain")
        if end > middle:
            yield Idle(max(start, middle), end, "sync")


class _Walk:
    """Goes back from an action to what keeps it from starting."""

    def __init__(self, timeline: Timeline) -> None:
        actions, times = timeline.actions, timeline.times
        self.start, self.end = times.start, times.end
        self.computed = list(map(min, times.end, times.send_start))
        self.reload = times.reload_end
        self.arrival = [*times.arrival, 0.0]
        self.need: list[int] = actions.need.tolist()
        self.capped = capped_times(actions, times)
        self.firsts = frozenset(actions.first)

    def gap(self, action: int, free: float) -> list[_Piece]:
        """The idle seconds from `free` to the start of `action`, in order."""
        found: list[_Piece] = []
        start = self.start[action]
        until = _take(found, "memory cap", max(free, start - self.capped[action]), start)
        open_ = [(action, free, until)]
        while open_:
            self._explain(*open_.pop(), found, open_)
        return sorted(found)

    def _explain(
        self,
        action: int,
        low: float,
        high: float,
        found: list[_Piece],
        open_: list[tuple[int, float, float]],
    ) -> None:
        """Why `action` does not start from `low` to `high`: into `found`, or left in `open_`."""
        while high > low:
            awaited = self.need[action]
            there, reload = self.arrival[awaited], self.reload[action]
            ready = max(low, there, reload)
            if high > ready:
                self._held_back(action, ready, high, found, open_)
                high = ready
            high = _take(found, "host link", max(low, there), high)
            if high <= low:
                return
            computed, begun = self.computed[awaited], self.start[awaited]
            high = _take(found, "send", max(low, computed), high)
            high = _take(found, _COMPUTE, max(low, begun), high)
            action = awaited

    def _held_back(
        self,
        action: int,
        low: float,
        high: float,
        found: list[_Piece],
        open_: list[tuple[int, float, float]],
    ) -> None:
        """Why `action`, which has all it needs, does not start: what its rank does before it."""
        after = action
        while high > low:
            before = after - 1
            idle_from = low if after in self.firsts else max(low, self.end[before])
            if high > idle_from:
                open_.append((after, idle_from, high))
            if idle_from == low:
                return
            high = _take(found, _COMPUTE, max(low, self.start[before]), min(high, idle_from))
            after = before


def _take(found: list[_Piece], cause: str, start: float, end: float) -> float:
    """Note the piece if it has any length; returns where it starts, or `end` if it has none."""
    if end <= start:
        return end
    found.append(_Piece(start, end, cause))
    return start
