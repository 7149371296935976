"""List scheduling by target times, for stages of any lengths on any ranks.

F and I of each stage have a target time, and microbatch m is due m periods later. A free rank takes
the ready action that is due first, and a W only where no F or I is ready. So targets and period are
a cyclic schedule that need not be exact: late actions run as soon as they can. A forward must also
leave memory for every microbatch to finish, by the rule in list_scheduling.py.

Step 1: begin with one microbatch's path, several periods, and backwards whole or split.
Step 2: change some targets at random, and keep the change unless the step grows.
"""

import heapq
import math
import random
from typing import NamedTuple

from autopart.solvers.orders.action_numbers import Orders
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.room import Room

PERIODS = (0.3, 0.6, 1.0, 1.5)
"""Periods to begin with, as multiples of the busiest rank's seconds per microbatch."""

SLOPES = (1.0, 2.0, 0.0, -0.5)
"""Targets of forwards to begin with, as multiples of their places on one microbatch's path."""

LEADS = (0.0, 0.5, 1.0, 2.0, 3.0, math.inf)
"""Leads to begin with under a memory cap, as multiples of the busiest rank's seconds per microbatch."""

WIDTHS = (0.2, 1.0, 4.0)
"""Standard deviations of a change, as multiples of the busiest rank's seconds per microbatch."""

STALE = 600
"""Changes in a row without a shorter step, after which the search ends."""

TIGHT = 1e-9
"""A relative difference that counts as rounding."""

FORWARD, BACK, WEIGHTS = 0, 1, 2


class Targets(NamedTuple):
    """A cyclic schedule that lists follow."""

    due: tuple[float, ...]
    """Seconds for F, I and W of each stage at microbatch 0, shape (3 * stages,)."""
    period: float
    """Seconds from one microbatch to the next."""
    whole: frozenset[int]
    """The stages whose backwards are whole."""
    lead: float
    """Seconds that a forward may start before it is due."""


class TargetSearch:
    """A local search over targets. Each rank has room for one microbatch on all its stages."""

    def __init__(
        self, times: OrderTimes, effort: Effort, start: Targets | None = None, seed: int = 0
    ) -> None:
        self._lists, self._effort, self._dice = _Lists(times), effort, random.Random(seed)
        self.step = math.inf
        """Seconds for the fastest orders so far."""
        self.targets: Targets
        self.orders: Orders
        self.stale = 0
        """Changes in a row without a shorter step."""
        for targets in [start] if start else _beginnings(self._lists):
            self._try(targets)
            if effort.is_over:
                break

    def run(self, changes: int, bound: float) -> None:
        """Make so many changes, or fewer where the effort is over, or one meets the bound."""
        for _ in range(changes):
            if self._effort.is_over or self.is_over(bound):
                return
            self._try(_changed(self.targets, self._lists, self._dice))

    def is_over(self, bound: float) -> bool:
        """Whether changes no longer help, or the step has met the bound."""
        return self.stale >= STALE or self.step <= bound * (1 + TIGHT)

    def _try(self, targets: Targets) -> None:
        step, orders = self._lists.run(targets)
        self._effort.spend(self._lists.times.size)
        self.stale = 0 if step < self.step * (1 - TIGHT) else self.stale + 1
        # Equal steps count too, so that the search leaves a plateau.
        if step <= self.step:
            self.step, self.targets, self.orders = step, targets, orders


def _beginnings(lists: "_Lists") -> list[Targets]:
    """Targets along one microbatch's path, with several periods and slopes."""
    path = lists.path
    choices = [frozenset[int]()] if lists.task.split else []
    if lists.may_turn or not lists.task.split:
        choices.append(frozenset(range(len(lists.task.stages))))
    leads = LEADS if lists.times.room is not None else (math.inf,)
    return [
        Targets(
            tuple(slope * each if x % 3 == FORWARD else each for x, each in enumerate(path)),
            share * lists.period,
            whole,
            lead * lists.period,
        )
        for whole in choices
        for share in PERIODS
        for slope in SLOPES
        for lead in leads
    ]


def _changed(targets: Targets, lists: "_Lists", dice: random.Random) -> Targets:
    """One to three changes to targets, and sometimes to the period, the lead or whole backwards."""
    unit = lists.period
    due, period, whole, lead = list(targets.due), *targets[1:]
    for _ in range(dice.choice((1, 1, 2, 3))):
        chance = dice.random()
        if chance < 0.05:
            period *= dice.uniform(0.7, 1.4)
        elif chance < 0.15 and lists.may_turn:
            whole = whole ^ {dice.randrange(len(due) // 3)}
        elif 0.15 < chance < 0.25 and lead < math.inf:
            lead = max(0.0, lead + dice.gauss(0.0, unit))
        else:
            due[dice.randrange(len(due))] += dice.gauss(0.0, unit) * dice.choice(WIDTHS)
    return Targets(tuple(due), period, whole, lead)


class _Lists:
    """Lists for one problem, as actions by number (action_numbers.py)."""

    def __init__(self, times: OrderTimes) -> None:
        self.times, self.task = times, times.task
        task, count = times.task, times.task.num_microbatches
        self.stages, self.count = len(task.stages), count
        busy = [0.0] * times.num_ranks
        times.turn_all(whole=False)
        for x in range(times.size):
            busy[times.rank[x]] += times.time[x] + times.after[x]
        self.period = max(busy) / count
        self.path = self._path()
        split_costs = any(times.saved(3 * s * count + 1) > 0.0 for s in range(self.stages))
        grows = any(
            waiting > stash
            for stash, waiting in zip(task.stash_bytes, task.waiting_bytes, strict=False)
        )
        self.may_turn = task.split and (split_costs or grows)
        """Whether a whole backward may be better than a split one."""

    def _path(self) -> list[float]:
        """When microbatch 0 alone would start each action."""
        times, count, now = self.times, self.count, 0.0
        path = [0.0] * (3 * self.stages)
        for stage in range(self.stages):
            x = 3 * stage * count
            path[3 * stage] = now
            now += times.time[x] + times.sending[x]
        for stage in reversed(range(self.stages)):
            x = 3 * stage * count + BACK
            path[3 * stage + BACK] = path[3 * stage + WEIGHTS] = now
            now += times.time[x] + times.sending[x]
        return path

    def run(self, targets: Targets) -> tuple[float, Orders]:
        """The step in seconds and the orders that follow the targets."""
        for x in range(BACK, self.times.size, 3):
            whole = x // 3 // self.count in targets.whole
            if self.times.whole[x] != whole:
                self.times.turn(x)
        numbers, step = _Listing(self, targets).run()
        return step, Orders(numbers, tuple(self.times.whole))


class _Listing:
    """One run of a list."""

    def __init__(self, lists: _Lists, targets: Targets) -> None:
        self.lists, self.times, self.count = lists, lists.times, lists.count
        self.lead = targets.lead
        ranks = range(self.times.num_ranks)
        # W is due behind everything else.
        late = 1.0 + sum(map(abs, targets.due)) + abs(targets.period) * self.count
        self.due = [
            targets.due[3 * (x // 3 // self.count) + x % 3]
            + targets.period * (x // 3 % self.count)
            + (3 * late if x % 3 == WEIGHTS else 0.0)
            for x in range(self.times.size)
        ]
        self.ready: list[list[tuple[float, int]]] = [[] for _ in ranks]
        """Actions that may start, by the time that they are due."""
        self.coming: list[list[tuple[float, int]]] = [[] for _ in ranks]
        """Actions that may start later, by that moment."""
        self.free = [0.0 for _ in ranks]
        self.wake = [float("inf") for _ in ranks]
        """The next moment at which a rank may start something."""
        self.link_free = [0.0] * len(self.times.links)
        self.orders: list[list[int]] = [[] for _ in ranks]
        room = self.times.room
        self.memory = [
            None if room is None else Room(self.times, rank, room[rank]) for rank in ranks
        ]

    def run(self) -> tuple[tuple[tuple[int, ...], ...], float]:
        """The orders in numbers, and the step in seconds."""
        rank_of, left = self.times.rank, self.times.size
        left -= sum(self.times.whole)
        for m in range(self.count):
            self._announce(rank_of[3 * m], 3 * m, 0.0)
        while left:
            # Step 1: the rank that may start first.
            now = min(self.wake)
            rank = self.wake.index(now)
            ready, coming = self.ready[rank], self.coming[rank]
            while coming and coming[0][0] <= now:
                x = heapq.heappop(coming)[1]
                heapq.heappush(ready, (self.due[x], x))
            # Step 2: its action that is due first, among those that memory admits.
            x = self._next(rank)
            if x >= 0:
                self._start(rank, x, now)
                left -= 1
            # Step 3: its next moment. A rank whose forwards lack memory waits for an arrival.
            self._set_wake(rank, blocked=x < 0)
        ends = zip(self.free, self.times.ends, strict=True)
        return tuple(map(tuple, self.orders)), max(free + end for free, end in ends)

    def _next(self, rank: int) -> int:
        """The ready action that is due first and fits; -1 for none."""
        ready, memory = self.ready[rank], self.memory[rank]
        if memory is None:
            return heapq.heappop(ready)[1] if ready else -1
        refused: list[tuple[float, int]] = []
        found = -1
        while ready and found < 0:
            due, x = heapq.heappop(ready)
            if x % 3 or memory.admits(x):
                found = x
            else:
                refused.append((due, x))
        for each in refused:
            heapq.heappush(ready, each)
        return found

    def _start(self, rank: int, x: int, now: float) -> None:
        times, memory = self.times, self.memory[rank]
        self.orders[rank].append(x)
        result = now + times.time[x]
        self.free[rank] = result + times.after[x]
        op, whole = x % 3, times.whole[x]
        if memory is not None:
            memory.take(x, ends=whole or op == WEIGHTS)
        if op == WEIGHTS:
            return
        if op == BACK and not whole:
            heapq.heappush(self.coming[rank], (self.free[rank], x + 1))
        # The result arrives at the next stage, or at the loss.
        way = 3 * self.count
        after, last = (x + way, times.size) if op == FORWARD else (x - way, -1)
        if op == FORWARD and after >= last:
            after = x + 1
        elif op == BACK and after < 0:
            return
        there, link, target = result, times.link[x], times.rank[after]
        if times.taker[x] < 0:
            there = self.free[rank]
        elif link >= 0:
            there = max(result, self.link_free[link]) + times.sending[x]
            self.link_free[link] = there
        self._announce(target, after, there)

    def _announce(self, rank: int, x: int, there: float) -> None:
        """An action's needs are there from a moment on."""
        if x % 3 == FORWARD:
            there = max(there, self.due[x] - self.lead)
        heapq.heappush(self.coming[rank], (there, x))
        self.wake[rank] = min(self.wake[rank], max(there, self.free[rank]))

    def _set_wake(self, rank: int, *, blocked: bool) -> None:
        coming = self.coming[rank]
        next_ = max(self.free[rank], coming[0][0]) if coming else float("inf")
        self.wake[rank] = self.free[rank] if self.ready[rank] and not blocked else next_
