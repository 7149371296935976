"""List scheduling: whenever a rank is free, it takes the first action of its priorities that is ready.

The clock is the simulator's: results travel on links of their own, first in, first out, or keep both
ranks busy. An action is ready when what it needs is there. A forward must also leave every microbatch
a way to its end within the rank's memory. For a rank, with

    held(m)     bytes that microbatch m keeps now, or will keep for W
    claim(m)    bytes that it will add: the stash of its stages on the rank that it has not begun

the orders stay free of deadlock as long as, for every microbatch m that is not done with the rank,

    claim(m) + sum of held(j) over all j >= m  <=  room

for then the oldest microbatch can always go on, and gives back what it held (the banker's algorithm of
Dijkstra, EWD 108, with the microbatches in their own order). Forwards of a stage keep that order, too.
"""

import heapq
from typing import NamedTuple

from autopart.order_bounds import OrderProblem
from autopart.schedule import Action, Op, Order, Schedule, dealt, rank_of
from autopart.simulator.actions import OPS
from autopart.simulator.costs import kind_costs


class Policy(NamedTuple):
    """What a rank prefers."""

    ops: tuple[str, ...]
    """Kinds of action, the preferred first: F, B (B or I), W."""
    limits: tuple[int, ...]
    """For each stage, the most microbatches in flight on one of its ranks."""
    deep_forward: bool = True
    """Of several stages on a rank, whether forwards of the later ones come first."""
    deep_backward: bool = False
    """The same for backwards."""
    halves: bool = False
    """Whether backwards are split."""
    patience: float = 0.0
    """How long a rank may wait for an action that it prefers, in durations of the one at hand."""


def list_schedule(task: OrderProblem, policy: Policy) -> Schedule:
    """The orders that a policy makes; every rank's room must hold one microbatch of its stages."""
    return _Listing(task, policy).run()


class _Rank:
    """What one rank has done and may do."""

    def __init__(self, task: OrderProblem, policy: Policy, rank: int) -> None:
        own = [s for s, ranks in enumerate(task.stage_ranks) if rank in ranks]
        self.free = 0.0
        self.order: list[Action] = []
        self.mine = {s: dealt(task.stage_ranks[s], rank, task.num_microbatches) for s in own}
        self.begun = dict.fromkeys(own, 0)
        """Forwards of each stage."""
        self.arrived: dict[int, dict[int, float]] = {s: {} for s in own}
        self.returned: dict[tuple[int, str], list[tuple[float, int]]] = {
            (s, op): [] for s in own for op in "BW"
        }
        self.in_flight = dict.fromkeys(own, 0)
        self.room = None if task.room_bytes is None else task.room_bytes[rank]
        self.stash = {s: task.most_kept(s) for s in own} if task.stash_bytes else {}
        self.total = 0
        self.held: dict[int, int] = {}
        self.claim: dict[int, int] = {}
        """Of the microbatches that are not done with the rank."""
        if self.room is not None:
            for s, mine in self.mine.items():
                for m in mine:
                    self.claim[m] = self.claim.get(m, 0) + self.stash[s]
        forward = sorted(own, reverse=policy.deep_forward)
        backward = sorted(own, reverse=policy.deep_backward)
        self.classes = [(s, op) for op in policy.ops for s in (forward if op == "F" else backward)]

    def admits(self, stage: int, microbatch: int) -> bool:
        """Whether a forward leaves room for all that must still come."""
        if self.room is None:
            return True
        stash = self.stash[stage]
        if self.total + stash > self.room:
            return False
        if len(self.mine) == 1:
            return True
        newer = self.total + stash
        for m in sorted(self.claim):
            if m > microbatch:
                break
            missing = self.claim[m] - (stash if m == microbatch else 0)
            if missing + newer > self.room:
                return False
            newer -= self.held.get(m, 0)
        return True

    def take(self, stage: int, op: str, microbatch: int, *, ends: bool) -> None:
        """Account for an action; `ends` says whether it frees the stash."""
        if op == "F":
            self.in_flight[stage] += 1
            self.begun[stage] += 1
        elif ends:
            self.in_flight[stage] -= 1
        if self.room is None:
            return
        stash = self.stash[stage]
        if op == "F":
            self.total += stash
            self.held[microbatch] = self.held.get(microbatch, 0) + stash
            self.claim[microbatch] -= stash
        elif ends:
            self.total -= stash
            self.held[microbatch] -= stash
            if not self.claim[microbatch] and not self.held[microbatch]:
                del self.claim[microbatch], self.held[microbatch]


class _Listing:
    def __init__(self, task: OrderProblem, policy: Policy) -> None:
        self.task, self.policy = task, policy
        costs = kind_costs(task.stages, task.action_overhead)
        self.compute, self.moving = costs.compute.tolist(), costs.moving.tolist()
        used = {rank for ranks in task.stage_ranks for rank in ranks}
        self.ranks = {rank: _Rank(task, policy, rank) for rank in sorted(used)}
        self.link_free: dict[tuple[int, int], float] = {}
        self.wakes: list[tuple[float, int]] = []

    def run(self) -> Schedule:
        task = self.task
        for m in range(task.num_microbatches):
            self.ranks[rank_of(task.stage_ranks[0], m)].arrived[0][m] = 0.0
        self.wakes = [(0.0, rank) for rank in self.ranks]
        while self.wakes:
            now, name = heapq.heappop(self.wakes)
            rank = self.ranks[name]
            if rank.free <= now:
                chosen = self._choose(rank, now)
                if chosen is not None:
                    self._start(name, rank, now, *chosen)
        orders: list[Order] = [()] * (max(self.ranks) + 1)
        for name, rank in self.ranks.items():
            orders[name] = tuple(rank.order)
        return tuple(orders)

    def _choose(self, rank: _Rank, now: float) -> tuple[int, str, int] | None:
        soonest = float("inf")
        for stage, op in rank.classes:
            there = self._next(rank, stage, op)
            if there is None:
                continue
            ready, microbatch = there
            if ready > now:
                soonest = min(soonest, ready)
            elif soonest - now < self.policy.patience * self._seconds(stage, op):
                return None
            else:
                return stage, op, microbatch
        return None

    def _next(self, rank: _Rank, stage: int, op: str) -> tuple[float, int] | None:
        """When the next action of a kind is ready, as far as that is known, and its microbatch."""
        if op != "F":
            queue = rank.returned[stage, op]
            return queue[0] if queue else None
        begun, mine = rank.begun[stage], rank.mine[stage]
        if begun == len(mine) or rank.in_flight[stage] >= self.policy.limits[stage]:
            return None
        microbatch = mine[begun]
        ready = rank.arrived[stage].get(microbatch)
        if ready is None or not rank.admits(stage, microbatch):
            return None
        return ready, microbatch

    def _seconds(self, stage: int, op: str) -> float:
        return self.compute[self._kind(stage, op)]

    def _kind(self, stage: int, op: str) -> int:
        return 4 * stage + OPS.index(self._letter(op))

    def _letter(self, op: str) -> Op:
        if op == "F":
            return "F"
        if op == "W":
            return "W"
        return "I" if self.policy.halves else "B"

    def _start(
        self, name: int, rank: _Rank, now: float, stage: int, op: str, microbatch: int
    ) -> None:
        if op != "F":
            heapq.heappop(rank.returned[stage, op])
        letter = self._letter(op)
        rank.order.append(Action(stage, letter, microbatch))
        rank.take(stage, op, microbatch, ends=letter in "BW")
        last = len(self.task.stages) - 1
        result = now + self._seconds(stage, op) + self._receiving(name, stage, op, microbatch)
        rank.free = result
        if letter == "I":
            heapq.heappush(rank.returned[stage, "W"], (result, microbatch))
        if op == "F" and stage == last:
            heapq.heappush(rank.returned[stage, "B"], (result, microbatch))
        elif op == "F":
            self._hand_over(name, rank, result, stage, op, stage + 1, microbatch)
        elif op == "B" and stage > 0:
            self._hand_over(name, rank, result, stage, op, stage - 1, microbatch)
        heapq.heappush(self.wakes, (rank.free, name))

    def _receiving(self, name: int, stage: int, op: str, microbatch: int) -> float:
        """Seconds of the receive before an action, where sends do not overlap compute."""
        source = {"F": stage - 1, "B": stage + 1}.get(op, -1)
        if self.task.sends_overlap or not 0 <= source < len(self.task.stages):
            return 0.0
        if rank_of(self.task.stage_ranks[source], microbatch) == name:
            return 0.0
        return self.moving[self._kind(source, op)]

    def _hand_over(
        self, name: int, rank: _Rank, result: float, stage: int, op: str, to: int, microbatch: int
    ) -> None:
        target = rank_of(self.task.stage_ranks[to], microbatch)
        arrival = result
        if target != name:
            moving = self.moving[self._kind(stage, op)]
            if self.task.sends_overlap:
                link = (name, target)
                arrival = max(result, self.link_free.get(link, 0.0)) + moving
                self.link_free[link] = arrival
            else:
                rank.free = result + moving
        receiver = self.ranks[target]
        if op == "F":
            receiver.arrived[to][microbatch] = arrival
        else:
            heapq.heappush(receiver.returned[to, "B"], (arrival, microbatch))
        heapq.heappush(self.wakes, (arrival, target))
