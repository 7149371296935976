"""The clock of a step whose sends share links, or whose stash goes to the host and back.

Who is served first on a shared link depends on when sends are ready, so here events are taken in the
order of time. On an equal time ends of actions come first, lower ranks first.

Each rank has one link to its host, which it uses for both directions, first in, first out. The stash
of a microbatch leaves when its F is computed. It returns while the action before its B (or I) runs: the
way back is asked for when that action starts, or when the stash has left, if that is later.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autopart.simulator.actions import Actions, B, F, I, refuse_deadlock
from autopart.simulator.clock import HostMove, Times
from autopart.simulator.costs import KindCosts, time_to_result


class Shared(NamedTuple):
    """Which sends share a link."""

    link_of: Mapping[tuple[int, int], int]
    """For (sender, receiver) the number of its link; pairs that are not named have their own."""


class HostTraffic(NamedTuple):
    """What one stage offloads for each microbatch."""

    num_bytes: int
    """Of the stash, between its way out and its way back."""
    time: float
    """Seconds of each of the two ways."""


def run_shared(
    actions: Actions,
    costs: KindCosts,
    *,
    sends_overlap: bool,
    shared: Shared | None = None,
    host: Sequence[HostTraffic] | None = None,
) -> Times:
    """Run the actions in the order of time; raises ScheduleError on a deadlock."""
    clock = _Clock(actions, costs, sends_overlap, shared or Shared({}), host)
    clock.run()
    return clock.times


class _Clock:
    def __init__(
        self,
        actions: Actions,
        costs: KindCosts,
        overlap: bool,
        shared: Shared,
        host: Sequence[HostTraffic] | None,
    ) -> None:
        count, num_ranks = actions.num_actions, len(actions.schedule)
        self.actions = actions
        self.time: list[float] = time_to_result(actions, costs, sends_overlap=overlap).tolist()
        self.moving: list[float] = costs.moving[actions.kind].tolist()
        self.need: list[int] = actions.need.tolist()
        self.link, self.overlap = _link_keys(actions, shared), overlap
        self.link_free: dict[object, float] = {}
        self.host_time, self.forward = _host_ways(actions, host)
        self.host_free = [0.0] * num_ranks
        self.host_moves: list[HostMove] = []
        self.start, self.end = [0.0] * count, [0.0] * count
        self.arrival: list[float | None] = [None] * count + [0.0, None]
        self.send_start, self.reload_end = [0.0] * count, [0.0] * count
        self.at, self.free = list(actions.first[:-1]), [0.0] * num_ranks
        self.waiting: dict[int, int] = {}
        self.running: list[tuple[float, int, int]] = []

    @property
    def times(self) -> Times:
        arrivals = [
            there for there in self.arrival[: self.actions.num_actions] if there is not None
        ]
        moves = tuple(self.host_moves)
        return Times(self.start, self.end, arrivals, self.send_start, self.reload_end, moves)

    def run(self) -> None:
        for rank in range(len(self.at)):
            self._try_start(rank)
        while self.running:
            self._finish(*heapq.heappop(self.running))
        done = [at - first for at, first in zip(self.at, self.actions.first, strict=False)]
        refuse_deadlock(self.actions.schedule, done)

    def _try_start(self, rank: int) -> None:
        i = self.at[rank]
        if i == self.actions.first[rank + 1]:
            return
        there = self.arrival[self.need[i]]
        if there is None:
            self.waiting[self.need[i]] = rank
            return
        self.start[i] = max(self.free[rank], there, self.reload_end[i])
        self.end[i] = self.start[i] + self.time[i]
        if self._returns_after(rank, i) and self.forward[i + 1] != i:
            self._move(rank, i + 1, self.start[i])
        heapq.heappush(self.running, (self.end[i], rank, i))

    def _finish(self, now: float, rank: int, i: int) -> None:
        self.at[rank], self.free[rank] = i + 1, now
        self.send_start[i] = arrival = now
        if self.link[i] is not None and not self.overlap:
            self.end[i] = self.free[rank] = now + self.moving[i]
        elif self.link[i] is not None:
            self.send_start[i] = max(now, self.link_free.get(self.link[i], 0.0))
            arrival = self.link_free[self.link[i]] = self.send_start[i] + self.moving[i]
        self.arrival[i] = arrival
        if self.forward[i] == i:
            self._move(rank, i, now)
        if self._returns_after(rank, i) and self.forward[i + 1] == i:
            self._move(rank, i + 1, now)
        if i in self.waiting:
            self._try_start(self.waiting.pop(i))
        self._try_start(rank)

    def _returns_after(self, rank: int, i: int) -> bool:
        """Whether the action after `i` needs a stash that is brought back."""
        after = i + 1
        return after < self.actions.first[rank + 1] and self.forward[after] not in (None, after)

    def _move(self, rank: int, action: int, asked: float) -> None:
        start = max(asked, self.host_free[rank])
        self.host_free[rank] = end = start + self.host_time[action]
        self.host_moves.append(HostMove(rank, action, start, end))
        if self.forward[action] != action:
            self.reload_end[action] = end


def _link_keys(actions: Actions, shared: Shared) -> list[object]:
    """What names the link of each send; None where nothing is sent."""
    keys = [shared.link_of.get(pair, pair) for pair in actions.links]
    return [keys[link] if link >= 0 else None for link in actions.link.tolist()]


def _host_ways(
    actions: Actions, host: Sequence[HostTraffic] | None
) -> tuple[list[float], list[int | None]]:
    """For each action the seconds on the host link, and, where it has any, the F of its stash."""
    time = [0.0] * actions.num_actions
    found: list[int | None] = [None] * actions.num_actions
    place: dict[tuple[int, int], int] = {}
    kinds, microbatches = actions.kind.tolist(), actions.microbatch.tolist()
    for i, (kind, microbatch) in enumerate(zip(kinds, microbatches, strict=True)):
        stage, op = divmod(kind, 4)
        if host is None or not host[stage].num_bytes or op not in (F, B, I):
            continue
        if op == F:
            place[stage, microbatch] = i
        time[i], found[i] = host[stage].time, place.get((stage, microbatch))
    return time, found
