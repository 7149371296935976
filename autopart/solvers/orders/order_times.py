"""An order's heads and tails, renewed after each change.

    head(x)    seconds from the step's start to the start of x
    tail(x)    seconds from the result of x to the step's end, if nothing after x waits

The longest path through x takes head(x) + time(x) + tail(x) seconds, and the step is the longest of
all paths. A change within a window of one rank keeps the heads before it and the tails after it. So
the paths through the window are known without a simulation (Balas and Vazacopoulos, Management
Science 1998). The estimate reads the heads and tails of other ranks as they were. It is exact where
two neighbours change places.
"""

from collections.abc import Sequence
from itertools import accumulate

from autopart.bounds.any_order_partition import OrderProblem
from autopart.solvers.orders.action_numbers import NumberedActions, Orders, Window

UNKNOWN, UNKNOWN_TAIL = -1.0, float("-inf")
"""A result or a tail that is not known yet. Tails are negative where ranks count from their own starts."""


class OrderTimes(NumberedActions):
    """One order per rank, with heads, tails and stash."""

    def __init__(self, task: OrderProblem) -> None:
        super().__init__(task)
        self.orders: list[list[int]] = [[] for _ in range(self.num_ranks)]
        self.place = [0] * self.size
        self.head = [0.0] * self.size
        self.result = [0.0] * (self.size + 1)
        """When an action's result arrives at its taker. The last entry stands for no action."""
        self.tail = [0.0] * self.size
        self.sent_tail = [0.0] * self.size
        """The tail through the send alone."""
        self.levels: list[list[int]] = [[] for _ in range(self.num_ranks)]
        """Stash bytes after each action, by rank and place."""
        self.step = 0.0

    def take(self, numbers: Sequence[Sequence[int]], whole: Sequence[bool]) -> bool:
        """Take some orders; False if they deadlock."""
        for x, new in enumerate(whole):
            if self.whole[x] != new:
                self.turn(x)
        for rank, order in enumerate(numbers):
            self._put(rank, list(order))
        return self.renew_all()

    @property
    def current(self) -> Orders:
        """The orders in numbers."""
        return Orders(tuple(map(tuple, self.orders)), tuple(self.whole))

    @property
    def fits(self) -> bool:
        """Whether each rank's stash fits its room."""
        if self.room is None:
            return True
        return all(
            max(levels, default=0) <= room
            for levels, room in zip(self.levels, self.room, strict=True)
        )

    def _put(self, rank: int, numbers: list[int]) -> None:
        self.orders[rank] = numbers
        place = self.place
        for at, x in enumerate(numbers):
            place[x] = at
        self.levels[rank] = list(accumulate(map(self.change.__getitem__, numbers)))

    def renew_all(self) -> bool:
        """Compute all heads and tails; False if the orders deadlock."""
        if not self._renew_heads([0] * len(self.orders)):
            return False
        self._renew_tails([len(order) for order in self.orders])
        return True

    @property
    def num_actions(self) -> int:
        """Actions on all ranks."""
        return sum(map(len, self.orders))

    def end_of(self, x: int) -> float:
        """When an action's rank is free again."""
        return self.head[x] + self.time[x] + self.after[x]

    def apply(self, window: Window) -> bool:
        """Make a change; False, and no change, if it deadlocks."""
        rank, low, high, actions, turned = window
        old = self.orders[rank]
        since = self.head[old[low]]
        if turned >= 0:
            self.turn(turned)
        self._put(rank, [*old[:low], *actions, *old[high:]])
        # Step 1: no action that started earlier is affected. Renew the heads of all others.
        at = [self.first_from(order, since) for order in self.orders]
        at[rank] = low
        if not self._renew_heads(at):
            if turned >= 0:
                self.turn(turned)
            self._put(rank, old)
            self._renew_heads([0] * len(self.orders))
            return False
        # Step 2: only actions that start before the window's last one have new tails.
        until = self.head[actions[-1]]
        stops = [self.first_from(order, until) for order in self.orders]
        stops[rank] = low + len(actions)
        self._renew_tails(stops)
        return True

    def first_from(self, order: Sequence[int], seconds: float) -> int:
        """The first place with a head of at least `seconds`."""
        head = self.head
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if head[order[middle]] < seconds:
                low = middle + 1
            else:
                high = middle
        return low

    def _renew_heads(self, at: list[int]) -> bool:
        """Run each rank from its place in `at` on."""
        orders, head, result = self.orders, self.head, self.result
        time, need, link, sending, after = self.time, self.need, self.link, self.sending, self.after
        free, link_free = self._free_at(at)
        for order, first in zip(orders, at, strict=True):
            for x in order[first:]:
                result[x] = UNKNOWN
        waiting: dict[int, int] = {}
        ranks = list(range(len(orders)))
        while ranks:
            rank = ranks.pop()
            now, order = free[rank], orders[rank]
            for place in range(at[rank], len(order)):
                # Step 1: if the awaited result is not made yet, the rank sleeps.
                x = order[place]
                there = result[need[x]]
                if there < 0.0:
                    waiting[need[x]] = rank
                    at[rank] = place
                    break
                # Step 2: start when the rank is free and the result is there; then compute.
                if there > now:
                    now = there
                head[x] = now
                now += time[x]
                # Step 3: the result queues for its link, or keeps the rank busy.
                wire = link[x]
                if wire >= 0:
                    leave = link_free[wire]
                    if leave < now:
                        leave = now
                    link_free[wire] = result[x] = leave + sending[x]
                else:
                    result[x] = now
                    now += after[x]
                # Step 4: wake the rank that sleeps until this action is done.
                if x in waiting:
                    ranks.append(waiting.pop(x))
            else:
                at[rank] = len(order)
            free[rank] = now
        self.step = max(end + rest for end, rest in zip(free, self.ends, strict=True))
        return not waiting

    def _free_at(self, at: Sequence[int]) -> tuple[list[float], list[float]]:
        """When each rank and each link is free, before the places in `at`."""
        free = [0.0] * len(self.orders)
        link_free = [0.0] * len(self.links)
        for rank, place in enumerate(at):
            order = self.orders[rank]
            if place:
                x = order[place - 1]
                free[rank] = self.head[x] + self.time[x] + self.after[x]
            missing = {wire for (sender, _), wire in self.links.items() if sender == rank}
            while missing and place:
                place -= 1
                wire = self.link[order[place]]
                if wire in missing:
                    link_free[wire] = self.result[order[place]]
                    missing.remove(wire)
        return free, link_free

    def _renew_tails(self, stops: list[int]) -> None:
        """Run each rank backwards from its place in `stops`, which is not included."""
        orders, tail, sent_tail = self.orders, self.tail, self.sent_tail
        time, taker, after = self.time, self.taker, self.after
        link, sending = self.link, self.sending
        rest, link_rest = self._rest_at(stops)
        for order, stop in zip(orders, stops, strict=True):
            for x in order[:stop]:
                tail[x] = UNKNOWN_TAIL
        waiting: dict[int, int] = {}
        ranks = list(range(len(orders)))
        at = stops
        while ranks:
            rank = ranks.pop()
            behind, order = rest[rank], orders[rank]
            for place in range(at[rank] - 1, -1, -1):
                # Step 1: if the tail of the action that takes the result is unknown, sleep.
                x = order[place]
                target = taker[x]
                longest = behind + after[x]
                if target >= 0:
                    there = tail[target]
                    if there == UNKNOWN_TAIL:
                        waiting[target] = rank
                        at[rank] = place + 1
                        break
                    # Step 2: the longest path goes on along rank, taker or link queue.
                    there += time[target]
                    wire = link[x]
                    if wire >= 0:
                        there = max(there, link_rest[wire]) + sending[x]
                        link_rest[wire] = there
                    sent_tail[x] = there
                    if there > longest:
                        longest = there
                tail[x] = longest
                behind = longest + time[x]
                # Step 3: wake the rank whose send this action awaits.
                if x in waiting:
                    ranks.append(waiting.pop(x))
            else:
                at[rank] = 0
            rest[rank] = behind

    def _rest_at(self, stops: Sequence[int]) -> tuple[list[float], list[float]]:
        """The longest way to the step's end for each rank and link, from the places in `stops`."""
        rest = list(self.ends)
        link_rest = [UNKNOWN_TAIL] * len(self.links)
        for rank, place in enumerate(stops):
            order = self.orders[rank]
            if place < len(order):
                x = order[place]
                rest[rank] = self.time[x] + self.tail[x]
            missing = {wire for (sender, _), wire in self.links.items() if sender == rank}
            while missing and place < len(order):
                wire = self.link[order[place]]
                if wire in missing:
                    link_rest[wire] = self.sent_tail[order[place]]
                    missing.remove(wire)
                place += 1
        return rest, link_rest

    def estimate(self, window: Window, most: float) -> float:
        """The longest path through a window after its change, in seconds.

        Infinite where the window exceeds the room. Paths over `most` seconds need not be exact.
        """
        if window.turned >= 0:
            self.turn(window.turned)
        starts = self._starts(window)
        longest = self._longest(window, starts, most) if starts else float("inf")
        if window.turned >= 0:
            self.turn(window.turned)
        return longest

    def _starts(self, window: Window) -> list[float]:
        """When the window's actions start; empty where they exceed the room."""
        order, time, after = self.orders[window.rank], self.time, self.after
        head, result, need, change = self.head, self.result, self.need, self.change
        free, level = 0.0, 0
        if window.low:
            x = order[window.low - 1]
            free, level = head[x] + time[x] + after[x], self.levels[window.rank][window.low - 1]
        room = self.room[window.rank] if self.room is not None else float("inf")
        starts: list[float] = []
        for x in window.actions:
            there = result[need[x]]
            if there > free:
                free = there
            starts.append(free)
            free += time[x] + after[x]
            level += change[x]
            if level > room:
                return []
        return starts

    def _longest(self, window: Window, starts: Sequence[float], most: float) -> float:
        """The longest path through the window; not exact over `most` seconds."""
        order, time, after = self.orders[window.rank], self.time, self.after
        taker, sent_tail = self.taker, self.sent_tail
        behind = self.ends[window.rank]
        if window.high < len(order):
            x = order[window.high]
            behind = time[x] + self.tail[x]
        longest = 0.0
        for x, start in zip(reversed(window.actions), reversed(starts), strict=True):
            behind += after[x]
            if taker[x] >= 0 and sent_tail[x] > behind:
                behind = sent_tail[x]
            behind += time[x]
            if start + behind > longest:
                longest = start + behind
                if longest > most:
                    break
        return longest
