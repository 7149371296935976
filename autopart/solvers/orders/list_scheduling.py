"""List scheduling: a free rank takes the first ready action of its priorities.

The clock is the simulator's. Results travel on links of their own, first in, first out, or keep
both ranks busy. An action is ready when its inputs are there. A forward must also leave enough
memory for every microbatch to finish. For a rank, let

    kept(m)     bytes that microbatch m keeps now, or will keep for W
    claim(m)    bytes that m will add: the stash of its stages on the rank that it has not begun

The orders stay free of deadlock while, for each microbatch m that the rank has not finished,

    claim(m) + sum of kept(j) over all j >= m  <=  room

Then the oldest microbatch can always go on, and frees its bytes. This is the banker's algorithm
(Dijkstra, EWD 108) with the microbatches in their own order. Forwards of a stage keep that order
too.
"""

import heapq
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem
from autopart.schedules.actions import Action, Op, Order, Schedule, dealt, rank_of
from autopart.schedules.encoding import OPS, neighbours
from autopart.simulator.costs import kind_costs


class Policy(NamedTuple):
    """Preferences for all ranks."""

    ops: tuple[str, ...]
    """Action kinds by preference: F, B (which stands for B and I), W."""
    limits: tuple[int, ...]
    """The most microbatches in flight per rank, for each stage."""
    deep_forward: bool = True
    """Whether a rank prefers forwards on its later stages."""
    deep_backward: bool = False
    """Whether a rank prefers backwards on its later stages."""
    split: frozenset[int] = frozenset()
    """The stages whose backwards are split."""
    patience: float = 0.0
    """Waiting allowed for a preferred action, as a multiple of the current action's seconds."""


def list_schedule(task: OrderProblem, policy: Policy) -> Schedule:
    """The orders that follow a policy. Each rank has room for one microbatch on all its stages."""
    return _Listing(task, policy).run()


class _ListedRank:
    """One rank's done and possible actions."""

    def __init__(self, task: OrderProblem, policy: Policy, rank: int) -> None:
        own = [s for s, ranks in enumerate(task.stage_ranks) if rank in ranks]
        self.free = 0.0
        self.order: list[Action] = []
        self.mine = {s: dealt(task.stage_ranks[s], rank, task.num_microbatches) for s in own}
        self.begun = dict.fromkeys(own, 0)
        """Forwards begun, by stage."""
        self.arrived: dict[int, dict[int, float]] = {s: {} for s in own}
        self.returned: dict[tuple[int, str], list[tuple[float, int]]] = {
            (s, op): [] for s in own for op in "BW"
        }
        self.in_flight = dict.fromkeys(own, 0)
        self.room = None if task.room_bytes is None else task.room_bytes[rank]
        self.stash = {s: task.most_kept(s) for s in own} if task.stash_bytes else {}
        self.total = 0
        self.kept: dict[int, int] = {}
        self.claim: dict[int, int] = {}
        """claim(m) for each microbatch that the rank has not finished."""
        if self.room is not None:
            for s, mine in self.mine.items():
                for m in mine:
                    self.claim[m] = self.claim.get(m, 0) + self.stash[s]
        forward = sorted(own, reverse=policy.deep_forward)
        backward = sorted(own, reverse=policy.deep_backward)
        self.classes = [(s, op) for op in policy.ops for s in (forward if op == "F" else backward)]

    def admits(self, stage: int, microbatch: int) -> bool:
        """Whether a forward keeps the rule in the module's docstring."""
        if self.room is None:
            return True
        stash = self.stash[stage]
        if self.total + stash > self.room:
            return False
        if len(self.mine) == 1:
            return True
        # From the oldest microbatch: its claim, and the bytes of all microbatches from it on.
        newer = self.total + stash
        for m in sorted(self.claim):
            if m > microbatch:
                break
            missing = self.claim[m] - (stash if m == microbatch else 0)
            if missing + newer > self.room:
                return False
            newer -= self.kept.get(m, 0)
        return True

    def take(self, stage: int, op: str, microbatch: int, *, ends: bool) -> None:
        """Count an action; `ends` says whether it frees the stash."""
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
            self.kept[microbatch] = self.kept.get(microbatch, 0) + stash
            self.claim[microbatch] -= stash
        elif ends:
            self.total -= stash
            # A microbatch without bytes may be gone, though a stage without stash is not done.
            self.kept[microbatch] = self.kept.get(microbatch, 0) - stash
            if not self.claim.get(microbatch) and not self.kept[microbatch]:
                self.claim.pop(microbatch, None)
                del self.kept[microbatch]


class _Listing:
    def __init__(self, task: OrderProblem, policy: Policy) -> None:
        self.task, self.policy = task, policy
        costs = kind_costs(task.stages, task.action_overhead)
        self.compute, self.moving = costs.compute.tolist(), costs.moving.tolist()
        # The orders do not exist yet: the table of stages that wait for each other needs none.
        self.neighbours = neighbours(len(task.stages))
        used = {rank for ranks in task.stage_ranks for rank in ranks}
        self.ranks = {rank: _ListedRank(task, policy, rank) for rank in sorted(used)}
        self.link_free: dict[tuple[int, int], float] = {}
        self.wakes: list[tuple[float, int]] = []

    def run(self) -> Schedule:
        task = self.task
        for m in range(task.num_microbatches):
            self.ranks[rank_of(task.stage_ranks[0], m)].arrived[0][m] = 0.0
        self.wakes = [(0.0, rank) for rank in self.ranks]
        # A rank wakes when it is free, or when a result arrives. It then starts one action, or
        # sleeps.
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

    def _choose(self, rank: _ListedRank, now: float) -> tuple[int, str, int] | None:
        # Take the first ready action, unless a preferred one becomes ready within the patience.
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

    def _next(self, rank: _ListedRank, stage: int, op: str) -> tuple[float, int] | None:
        """When the next action with this kind is ready, in seconds, and its microbatch; None where
        unknown."""
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
        return 4 * stage + OPS.index(self._letter(stage, op))

    def _letter(self, stage: int, op: str) -> Op:
        if op == "F":
            return "F"
        if op == "W":
            return "W"
        return "I" if stage in self.policy.split else "B"

    def _start(
        self, name: int, rank: _ListedRank, now: float, stage: int, op: str, microbatch: int
    ) -> None:
        if op != "F":
            heapq.heappop(rank.returned[stage, op])
        letter = self._letter(stage, op)
        rank.order.append(Action(stage, letter, microbatch))
        rank.take(stage, op, microbatch, ends=letter in "BW")
        result = now + self._seconds(stage, op) + self._receiving(name, stage, op, microbatch)
        rank.free = result
        if letter == "I":
            heapq.heappush(rank.returned[stage, "W"], (result, microbatch))
        target = self.neighbours.awaiting[self._kind(stage, op)]
        if target >= 0:
            self._hand_over(name, rank, result, stage, op, target, microbatch)
        elif op == "F":
            # The last stage makes the loss: its backward waits for nothing but its own forward.
            heapq.heappush(rank.returned[stage, "B"], (result, microbatch))
        heapq.heappush(self.wakes, (rank.free, name))

    def _receiving(self, name: int, stage: int, op: str, microbatch: int) -> float:
        """Seconds for the receive before an action, where sends do not overlap compute."""
        source = self.neighbours.awaited[self._kind(stage, op)]
        if self.task.sends_overlap or source < 0:
            return 0.0
        if rank_of(self.task.stage_ranks[source], microbatch) == name:
            return 0.0
        return self.moving[self._kind(source, op)]

    def _hand_over(
        self,
        name: int,
        rank: _ListedRank,
        result: float,
        stage: int,
        op: str,
        to: int,
        microbatch: int,
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
