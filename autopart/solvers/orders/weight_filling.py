"""W for given orders of F and I: W runs where its rank would wait, or where memory forces it.

A W that fits into an idle time costs nothing. A W that is longer delays the action behind it. A
rank may wait instead: then that W fills an idle time later, or the drain. Each rank has idle
seconds to spend,

    idle(rank)  =  goal - (its first F's arrival + its actions + syncs and updates)

for a step of `goal` seconds. It waits while it has some left, and runs W at once otherwise. So W
gathers for the drain, as in zero bubble (Qi et al., ICLR 2024). Where an F exceeds the room, W runs
first; without any W the rank's next I runs first.
"""

from collections import deque
from collections.abc import Sequence

from autopart.solvers.orders.order_times import OrderTimes

Numbers = Sequence[Sequence[int]]
"""For each rank, F and backwards by number (order_times.py)."""


def without_weights(times: OrderTimes) -> list[list[int]]:
    """The current orders without W."""
    return [[x for x in order if x % 3 < 2] for order in times.orders]


def fill(times: OrderTimes, given: Numbers, goal: float) -> list[list[int]] | None:
    """The orders with a W for each split backward; None where F and I deadlock."""
    return _Filling(times, given, goal).run()


class _FilledRank:
    """One rank while its W's are put in."""

    def __init__(self, given: Sequence[int], room: int | None) -> None:
        self.left = deque(given)
        self.order: list[int] = []
        self.weights: deque[int] = deque()
        """W's that may run, the oldest first."""
        self.room = room
        self.level = 0
        self.now = 0.0
        self.idle: float | None = None
        """Idle seconds to spend, from the first action on."""


class _Filling:
    def __init__(self, times: OrderTimes, given: Numbers, goal: float) -> None:
        self.times, self.goal = times, goal
        rooms = times.room or [None] * len(given)
        self.ranks = [_FilledRank(g, room) for g, room in zip(given, rooms, strict=True)]
        self.work = [self._work(order) for order in given]
        self.result: dict[int, float] = {times.size: 0.0}
        self.link_free: dict[int, float] = {}
        self.waiting: dict[int, int] = {}

    def _work(self, given: Sequence[int]) -> float:
        """Seconds for a rank's actions and sends, W included."""
        time, after, whole = self.times.time, self.times.after, self.times.whole
        weights = (x + 1 for x in given if x % 3 == 1 and not whole[x])
        return sum(time[x] + after[x] for x in given) + sum(time[x] for x in weights)

    def run(self) -> list[list[int]] | None:
        awake = list(range(len(self.ranks)))
        while awake:
            name = awake.pop()
            rank = self.ranks[name]
            while rank.left:
                # Step 1: make room for the next action.
                if not self._make_room(rank):
                    return None
                x = rank.left[0]
                # Step 2: sleep until its input is on the way; then the arrival is known.
                need = self.times.need[x]
                if need not in self.result:
                    self.waiting[need] = name
                    break
                # Step 3: fill the time until then with W, run the action, wake its taker.
                self._wait(name, rank, self.result[need])
                self._start(rank, rank.left.popleft())
                if x in self.waiting:
                    awake.append(self.waiting.pop(x))
        if self.waiting:
            return None
        for rank in self.ranks:
            rank.order.extend(rank.weights)
        return [rank.order for rank in self.ranks]

    def _make_room(self, rank: _FilledRank) -> bool:
        """Put W's, or else the next backward, before an action that exceeds the room."""
        change = self.times.change
        if rank.room is None:
            return True
        while rank.level + change[rank.left[0]] > rank.room:
            if rank.weights:
                self._start(rank, rank.weights.popleft())
                continue
            at = next((at for at, x in enumerate(rank.left) if x % 3 == 1), None)
            if not at:
                return False
            back = rank.left[at]
            if any(x in self.times.before[back] for x in list(rank.left)[:at]):
                return False
            del rank.left[at]
            rank.left.appendleft(back)
        return True

    def _wait(self, name: int, rank: _FilledRank, arrival: float) -> None:
        """Run W's or be idle until the next action's input arrives."""
        time = self.times.time
        while rank.weights and rank.now + time[rank.weights[0]] <= arrival:
            self._start(rank, rank.weights.popleft())
        if arrival <= rank.now:
            return
        if rank.idle is None:
            rank.idle = self.goal - arrival - self.work[name] - self.times.ends[name]
        elif rank.weights and rank.idle < arrival - rank.now:
            self._start(rank, rank.weights.popleft())
            rank.idle -= max(0.0, arrival - rank.now)
        else:
            rank.idle -= arrival - rank.now
        rank.now = max(rank.now, arrival)

    def _start(self, rank: _FilledRank, x: int) -> None:
        times = self.times
        rank.order.append(x)
        rank.level += times.change[x]
        if rank.idle is None and rank.now == 0.0:
            rank.idle = self.goal - self.work[times.rank[x]] - times.ends[times.rank[x]]
        rank.now += times.time[x]
        if x % 3 == 1 and not times.whole[x]:
            rank.weights.append(x + 1)
        result = rank.now
        link = times.link[x]
        if link >= 0:
            result = max(result, self.link_free.get(link, 0.0)) + times.sending[x]
            self.link_free[link] = result
        self.result[x] = result
        rank.now += times.after[x]
