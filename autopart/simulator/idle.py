"""Idle causes: each rank in use has one cause for every idle second.

At an idle instant the rank waits for its next action X. The walk goes back from X until it finds
the cause. Let Y be the action that X awaits. Where X is an overlapped pair, Y's result is the last
that it awaits.

0. A move of stash that runs beside the action before X is not done: **lending**. It delays X, or
   the Y or Z that the walk has come to.
1. Y's result is in transit, or queues for its link: **send**. Where sends do not overlap compute,
   Y's rank is busy with the send.
2. Y is running: a wait for **compute**. The last seconds of its compute are **shared state**: those of gathers and
   reductions that compute does not hide. The same holds for actions in 4.
3. Y has not started because its own input is missing: the walk goes on from Y.
4. Y has its input, but its rank runs another action: a wait for **compute**.
5. Y has its input, and its rank is idle because an action Z stands before Y: the walk goes on from
   Z.

Waits for compute have three names:

- **Fill** comes before the rank's first action.
- **Imbalance** covers the earliest seconds after it: as many as the rank has less work than the
  busiest rank. Work is the time that its actions take in the step, without gathers and reductions that show.
- **Dependency latency** covers the rest. The rank waits, but other ranks have no more work than it
  has.

A gap's last seconds are **memory cap**: as many as the gap would be shorter if no forward were
delayed by its order. A forward is delayed while its input is there and its rank is idle, but a
backward stands before it. Orders that limit the microbatches in flight do this. No rank has more
such seconds than the whole step would gain. `memory_cap` computes them.

Two causes are left once the rank's last action has ended. It is **drain** while any rank still runs
an action. It is **sync** later, while others finish syncs and optimizer steps.

Pieces in a gap meet end to end. So on whole numbers the causes add up to the idle time exactly. On
floats they do so up to `ROUNDING` times the makespan.
"""

from collections.abc import Iterator
from operator import sub
from typing import Literal, NamedTuple, get_args

import numpy as np

from autopart.schedules.encoding import Actions
from autopart.simulator.clock import held_until
from autopart.simulator.memory_cap import capped_times
from autopart.simulator.timeline import Timeline, busy_times, used_ranks

Cause = Literal[
    "fill",
    "drain",
    "imbalance",
    "dependency latency",
    "send",
    "lending",
    "sync",
    "memory cap",
    "shared state",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
ROUNDING = 1e-9
"""The most that each rank's seconds may differ from the makespan, relative to it."""

_COMPUTE = "compute"
"""The cause until a wait for compute gets its final name."""


class Idle(NamedTuple):
    """An idle stretch with one cause, in seconds since the step began."""

    start: float
    end: float
    cause: Cause


class _Piece(NamedTuple):
    start: float
    end: float
    cause: str


def idle_pieces(timeline: Timeline) -> tuple[tuple[Idle, ...], ...]:
    """Each rank's idle stretches by cause, in order, over the whole step.

    A rank without actions has none.
    """
    walk = _Causes(timeline)
    busy = _work(timeline)
    pieces: list[tuple[Idle, ...]] = [()] * len(busy)
    last = max((timeline.times.end[i - 1] for i in timeline.actions.first[1:] if i), default=0.0)
    for rank in used_ranks(timeline):
        # Step 1: before the first action, waits for compute are fill.
        first, stop = timeline.actions.first[rank : rank + 2]
        before = _named(walk.gap(first, 0.0), "fill")
        # Step 2: find the pieces of all gaps between actions.
        free = timeline.times.end[first]
        gaps: list[_Piece] = []
        for i in range(first + 1, stop):
            if timeline.times.start[i] > free:
                gaps += walk.gap(i, free)
            free = timeline.times.end[i]
        # Step 3: divide waits for compute between imbalance and dependency latency.
        less_work = max(busy) - busy[rank]
        if less_work <= ROUNDING * timeline.makespan:
            less_work = 0.0
        within = _split_waits(gaps, less_work)
        # Step 4: after the last action come drain and sync.
        pieces[rank] = (*before, *within, *_after_actions(timeline, rank, free, last))
    return tuple(pieces)


def _work(timeline: Timeline) -> list[float]:
    """The seconds of each rank's actions, without exposed gathers and reductions."""
    busy = busy_times(timeline.actions, timeline.times)
    if not timeline.exposed:
        return busy
    each = np.split(np.array(timeline.exposed), timeline.actions.first[1:-1])
    return [own - float(less.sum()) for own, less in zip(busy, each, strict=True)]


def shown_causes(timeline: Timeline) -> tuple[Cause, ...]:
    """The causes that a timeline may have: shared state only where the GPUs of a rank share it."""
    return CAUSES if timeline.exposed else tuple(c for c in CAUSES if c != "shared state")


def idle_times(timeline: Timeline) -> tuple[dict[Cause, float], ...]:
    """Each rank's idle seconds by cause."""
    return tuple(sums_by_cause(own) for own in idle_pieces(timeline))


def sums_by_cause(pieces: tuple[Idle, ...]) -> dict[Cause, float]:
    """The total seconds by cause."""
    times: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    for start, end, cause in pieces:
        times[cause] += end - start
    return times


def _named(pieces: list[_Piece], waits: Cause) -> Iterator[Idle]:
    """The same pieces; waits for compute get the name `waits`."""
    for start, end, cause in pieces:
        name = waits if cause == _COMPUTE else cause
        yield Idle(start, end, name)  # pyright: ignore[reportArgumentType]


def _split_waits(pieces: list[_Piece], less_work: float) -> Iterator[Idle]:
    """The same pieces; waits for compute are imbalance for the first `less_work` seconds."""
    left = less_work
    for piece in pieces:
        if piece.cause != _COMPUTE:
            yield from _named([piece], "imbalance")
            continue
        # A wait that is only partly imbalance is cut in two.
        middle = min(piece.end, piece.start + left)
        if middle > piece.start:
            yield Idle(piece.start, middle, "imbalance")
        if piece.end > middle:
            yield Idle(middle, piece.end, "dependency latency")
        left -= middle - piece.start


def _after_actions(timeline: Timeline, rank: int, free: float, last: float) -> Iterator[Idle]:
    """The rank's idle stretches after its last action.

    This action ends at `free`, and the last action on any rank ends at `last`.
    """
    gaps: list[tuple[float, float]] = []
    for sync in timeline.syncs[rank]:
        gaps.append((free, sync.start))
        free = sync.end
    gaps.append((timeline.rank_end[rank], timeline.makespan))
    # Up to `last` a gap is drain; from there on it is sync.
    for start, end in gaps:
        middle = min(max(start, last), end)
        if middle > start:
            yield Idle(start, middle, "drain")
        if end > middle:
            yield Idle(max(start, middle), end, "sync")


class _Causes:
    """Walks back from an action to the causes that delay it."""

    def __init__(self, timeline: Timeline) -> None:
        actions, times = timeline.actions, timeline.times
        self.start, self.end = times.start, times.end
        # Where sends do not overlap, the end of an action includes its send. Its result is made
        # before.
        self.computed = list(map(min, times.end, times.send_start))
        self.arrival = [*times.arrival, 0.0]
        self.need = self._awaited(actions)
        self.capped = capped_times(actions, times)
        self.firsts = frozenset(actions.first)
        self.held = held_until(times)
        # From here to `computed` an action waits for its own gathers and reductions.
        exposed = timeline.exposed or (0.0,) * actions.num_actions
        self.hidden = list(map(max, times.start, map(sub, self.computed, exposed)))

    def _awaited(self, actions: Actions) -> list[int]:
        """What each action awaits; for an overlapped pair's forward what arrives last for the pair."""
        need, seconds = actions.need.tolist(), actions.second
        for forward in actions.pairs.tolist():
            need[forward] = max(need[forward], seconds[forward], key=self.arrival.__getitem__)
            need[forward + 1] = actions.nothing
        return need

    def gap(self, action: int, free: float) -> list[_Piece]:
        """The pieces in the gap between `free` and `action`, in order."""
        # Step 1: the last seconds of the gap are memory cap.
        found: list[_Piece] = []
        start = self.start[action]
        until = _take(found, "memory cap", max(free, start - self.capped[action]), start)
        # Step 2: explain the rest. Each open entry is an action that does not start from low to
        # high.
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
        """Explain why `action` does not start from `low` to `high`.

        Pieces with a known cause go into `found`, and open questions into `open_`. The loop works
        backwards in time: all that is left to explain ends at `high`.
        """
        while high > low:
            # Step 1: from `ready` on the input is there, so the action's own rank delays it.
            awaited = self.need[action]
            ready = max(low, self.arrival[awaited])
            if action in self.held:
                # A move is last to end where the action starts with it. Its rank was free before.
                free = max(ready, self.end[action - 1])
                if self.held[action] > free:
                    high = _take(found, "lending", free, high)
            if high > ready:
                self._delayed_by_rank(action, ready, high, found, open_)
                high = ready
            if high <= low:
                return
            # Step 2: before that the result was in transit, and before that it was being computed.
            computed, begun = self.computed[awaited], self.start[awaited]
            high = _take(found, "send", max(low, computed), high)
            high = _take(found, "shared state", max(low, self.hidden[awaited]), high)
            high = _take(found, _COMPUTE, max(low, begun), high)
            # Step 3: still earlier, the awaited action had not started. Explain its delay instead.
            action = awaited

    def _delayed_by_rank(
        self,
        action: int,
        low: float,
        high: float,
        found: list[_Piece],
        open_: list[tuple[int, float, float]],
    ) -> None:
        """Explain why `action`, whose input is there, does not start from `low` to `high`.

        Its rank runs or awaits earlier actions in its order. The loop goes back through them.
        """
        after = action
        while high > low:
            # Step 1: the rank is idle after the action before. Why the next one does not start is
            # open.
            before = after - 1
            idle_from = low if after in self.firsts else max(low, self.end[before])
            if high > idle_from:
                open_.append((after, idle_from, high))
            if idle_from == low:
                return
            # Step 2: while the action before runs, the wait is for compute, but for its messages.
            high = min(high, idle_from)
            if self.hidden[before] < self.computed[before]:
                high = _take(found, _COMPUTE, max(low, self.computed[before]), high)
                high = _take(found, "shared state", max(low, self.hidden[before]), high)
            high = _take(found, _COMPUTE, max(low, self.start[before]), high)
            after = before


def _take(found: list[_Piece], cause: str, start: float, end: float) -> float:
    """Add a piece if it has any length. Returns where the time that is left to explain ends."""
    if end <= start:
        return end
    found.append(_Piece(start, end, cause))
    return start
