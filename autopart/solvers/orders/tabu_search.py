"""Tabu search over orders: the best change on the critical path, even if the step gets longer.

Each round takes the change with the smallest estimate (order_times.py). The exchanges that it made
may not be undone for a few rounds, except for a new best step (Nowicki and Smutnicki, Management
Science 1996). After many rounds without a better step the search goes back to its best order, and
random changes lead away from it.

Equal seeds and equal numbers of rounds give equal schedules.
"""

from collections.abc import Iterator
from random import Random

from autopart.bounds.any_order_partition import OrderProblem
from autopart.solvers.orders.action_numbers import Orders, Window
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.moves import critical_blocks, neighbours
from autopart.solvers.orders.order_times import OrderTimes

TIGHT = 1e-9
"""A relative difference that counts as rounding."""

TENURE = 8
"""The least rounds for which an exchange stays; up to twice as many are drawn."""

ASTRAY = 400
"""Rounds without a better step after which the search returns to its best order."""

STALE, STALE_PER_ACTION = 500, 25
"""Rounds without a better step that end a search, in all and for each action."""

NEAR_BOUND = 0.005
"""A relative gap for which a quarter of these rounds is enough."""

KICKS = 4
"""Random changes after each return."""


class TabuSearch:
    """A search from some orders, to be continued at will."""

    def __init__(self, task: OrderProblem, start: Orders, seed: int) -> None:
        self.times, self.random = OrderTimes(task), Random(seed)
        if not self.times.take(*start):
            raise ValueError("a start must not deadlock")
        self.best = start
        self.step = self.times.step
        self.rounds = 0
        self.last_gain = 0
        """The round of the last better step."""
        self._kept: dict[tuple[int, int], int] = {}
        """For each pair, the round until which its first action may not come before its second."""

    def run(self, rounds: int, bound: float, effort: Effort) -> None:
        """Run some rounds, until the step meets the bound or the effort is over."""
        begun = self.rounds
        actions = sum(map(len, self.best.numbers))
        astray = 0
        while self.rounds < begun + rounds and self.step > bound * (1 + TIGHT):
            if effort.is_over:
                break
            # Step 1: a change, or a return where there is none or the search has gone astray.
            effort.spend(actions)
            self.rounds += 1
            astray += 1
            if not self._advance() or astray > ASTRAY:
                self._return()
                astray = 0
            # Step 2: keep the orders if they are the best so far.
            if self.times.step < self.step * (1 - TIGHT):
                self.best, self.step = self.times.current, self.times.step
                self.last_gain, astray = self.rounds, 0

    def is_stale(self, bound: float) -> bool:
        """Whether many rounds have passed without a better step; fewer near the bound."""
        patience = STALE + STALE_PER_ACTION * self.times.size
        if self.step <= bound * (1 + NEAR_BOUND):
            patience //= 4
        return self.rounds - self.last_gain > patience

    def _advance(self) -> bool:
        """Make the best change that is allowed; False where there is none."""
        times = self.times
        blocks = critical_blocks(times, self.random)
        chosen, least = None, float("inf")
        for window in neighbours(times, blocks, self.random):
            longest = times.estimate(window, least)
            if longest >= least:
                continue
            if longest >= self.step * (1 - TIGHT) and self._is_tabu(window):
                continue
            chosen, least = window, longest
        if chosen is None:
            return False
        self._apply(chosen)
        return True

    def _apply(self, window: Window) -> None:
        until = self.rounds + TENURE + self.random.randrange(TENURE)
        # A change that deadlocks is not made, and not tried again for long.
        if not self.times.apply(window):
            for pair in _made(self.times, window):
                self._kept[pair] = self.rounds + 1000
            return
        for first, second in _made(self.times, window):
            self._kept[second, first] = until

    def _is_tabu(self, window: Window) -> bool:
        kept, now = self._kept, self.rounds
        return any(kept.get(pair, 0) > now for pair in _made(self.times, window))

    def _return(self) -> None:
        """Go back to the best order, and some random changes away from it."""
        self.times.take(*self.best)
        self._kept.clear()
        for _ in range(KICKS):
            blocks = critical_blocks(self.times, self.random)
            fitting = [
                window
                for window in neighbours(self.times, blocks, self.random)
                if self.times.estimate(window, 1.1 * self.step) <= 1.1 * self.step
            ]
            if fitting:
                self._apply(self.random.choice(fitting))


def _made(times: OrderTimes, window: Window) -> Iterator[tuple[int, int]]:
    """The pairs that a change puts in order: first before second."""
    actions = window.actions
    if window.turned >= 0:
        # The pair (x, x) stands for whole; (x, W of x) for split.
        yield (window.turned, window.turned + (actions.count(window.turned + 1)))
        return
    if times.orders[window.rank][window.low] == actions[-1]:
        for x in actions[:-1]:
            yield x, actions[-1]
    else:
        for x in actions[1:]:
            yield actions[0], x
