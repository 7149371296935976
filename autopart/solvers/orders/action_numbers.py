"""Fixed numbers for the actions of a problem, and their needs, links, seconds and bytes.

An action's number is 3 x (stage x m + microbatch), plus 0 for F, 1 for B or I, 2 for W, where m
counts the microbatches. A whole backward uses the number of I, and its W stands in no order.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem, least_exposed
from autopart.schedules.actions import Action, Op, Schedule, rank_of
from autopart.schedules.encoding import B, F, I, W
from autopart.simulator.costs import kind_costs
from autopart.solvers.orders.evaluation import stash_changes


class Orders(NamedTuple):
    """One order per rank in numbers."""

    numbers: tuple[tuple[int, ...], ...]
    whole: tuple[bool, ...]
    """For each number, whether it is a whole backward."""


class Window(NamedTuple):
    """A change of one rank's order: other actions on the places from `low` up to `high`."""

    rank: int
    low: int
    high: int
    """The first place behind the window, before the change."""
    actions: tuple[int, ...]
    """The window's actions in their new order."""
    turned: int = -1
    """The backward that the change splits, or makes whole; -1 for none."""


class NumberedActions:
    """All actions of a problem by number. Backwards are split unless they are turned."""

    def __init__(self, task: OrderProblem) -> None:
        self.task = task
        stages, count = len(task.stages), task.num_microbatches
        self.size = size = 3 * stages * count
        costs = kind_costs(task.stages, task.action_overhead)
        self._compute = costs.compute.tolist()
        self._changes: list[int] = (
            stash_changes(task).tolist() if task.stash_bytes else [0] * (4 * stages)
        )
        self.num_ranks = 1 + max(rank for ranks in task.stage_ranks for rank in ranks)
        self.room = task.room_bytes if task.stash_bytes else None
        self.rank = [
            rank_of(task.stage_ranks[x // 3 // count], x // 3 % count) for x in range(size)
        ]
        self.whole = [False] * size
        """For each backward, whether it runs as B."""
        self.need = [size] * size
        """The action on another rank that an action awaits; `size` for none."""
        self.taker = [-1] * size
        """The action on another rank that awaits an action's result; -1 for none."""
        self.before: list[tuple[int, ...]] = [()] * size
        """Actions on the same rank that must come earlier."""
        self.link = [-1] * size
        """The link that carries an action's result; -1 for none."""
        self.sending = [0.0] * size
        """Seconds on the link, where sends overlap compute."""
        self.after = [0.0] * size
        """Seconds that the rank is busy with the send, where sends do not overlap compute."""
        self.links: dict[tuple[int, int], int] = {}
        """The links in use, by sender and receiver."""
        self._receiving = [0.0] * size
        self._connect(costs.moving.tolist())
        self.time = [0.0] * size
        """Seconds until the result, a receive that keeps the rank busy included."""
        self.change = [0] * size
        """Bytes that an action adds to its rank's stash."""
        for x in range(size):
            self._set(x)
        self.ends = ends_after(task, self.num_ranks)

    def _connect(self, moving: Sequence[float]) -> None:
        count, last = self.task.num_microbatches, len(self.task.stages) - 1
        for x in range(self.size):
            stage, op = x // 3 // count, x % 3
            # Step 1: the same stage on the same rank.
            before = (x - 1,) if op else ()
            # Step 2: the neighbouring stage, on the same rank or another one.
            source = -1
            if op == 0 and stage > 0:
                source = x - 3 * count
            elif op == 1 and stage < last:
                source = x + 3 * count
            if source >= 0 and self.rank[source] == self.rank[x]:
                before = (*before, source)
            elif source >= 0:
                self._join(source, x, moving[4 * (source // 3 // count) + (F if op == 0 else I)])
            self.before[x] = before

    def _join(self, source: int, taker: int, seconds: float) -> None:
        self.need[taker], self.taker[source] = source, taker
        if self.task.sends_overlap:
            pair = (self.rank[source], self.rank[taker])
            self.link[source] = self.links.setdefault(pair, len(self.links))
            self.sending[source] = seconds
        else:
            self.after[source] = self._receiving[taker] = seconds

    def _set(self, x: int) -> None:
        stage, op = x // 3 // self.task.num_microbatches, x % 3
        kind = 4 * stage + (F, B if self.whole[x] else I, W)[op]
        self.time[x] = self._compute[kind] + self._receiving[x]
        self.change[x] = self._changes[kind]

    def turn(self, back: int) -> None:
        """Split a whole backward, or make a split one whole. The orders do not change here."""
        self.whole[back] = not self.whole[back]
        self._set(back)

    def saved(self, back: int) -> float:
        """Seconds that a whole backward takes less than its I and W apart."""
        stage = back // 3 // self.task.num_microbatches
        whole, first, second = (self._compute[4 * stage + op] for op in (B, I, W))
        return first + second - whole

    def time_of(self, x: int, *, whole: bool) -> float:
        """Seconds for an action where its backward is whole or split; W of a whole one takes 0."""
        stage, op = x // 3 // self.task.num_microbatches, x % 3
        if op == 2:
            return 0.0 if whole else self.time[x]
        kind = 4 * stage + (F, B if whole else I)[op]
        return self._compute[kind] + self._receiving[x]

    def kept_bytes(self, back: int) -> tuple[int, int]:
        """Bytes that a microbatch keeps from F to I, and from I to W."""
        stage = back // 3 // self.task.num_microbatches
        stash = self._changes[4 * stage + F]
        return stash, stash + self._changes[4 * stage + I]

    def turn_all(self, *, whole: bool) -> None:
        """Split every backward, or make it whole. The orders do not change here."""
        for x in range(1, self.size, 3):
            if self.whole[x] != whole:
                self.turn(x)

    def numbers_of(self, schedule: Schedule) -> Orders:
        """A schedule in numbers."""
        count = self.task.num_microbatches
        offset = {"F": 0, "B": 1, "I": 1, "W": 2}
        whole = [False] * self.size
        numbers: list[tuple[int, ...]] = []
        for order in schedule:
            numbers.append(tuple(3 * (s * count + m) + offset[op] for s, op, m in order))
            for x, action in zip(numbers[-1], order, strict=True):
                whole[x] = action.op == "B"
        return Orders(tuple(numbers), tuple(whole))


def schedule_of(task: OrderProblem, orders: Orders) -> Schedule:
    """The orders as a schedule."""
    count = task.num_microbatches
    letters: list[tuple[Op, Op, Op]] = [("F", "I", "W"), ("F", "B", "W")]
    return tuple(
        tuple(
            Action(x // 3 // count, letters[orders.whole[x]][x % 3], x // 3 % count) for x in order
        )
        for order in orders.numbers
    )


def ends_after(task: OrderProblem, num_ranks: int) -> list[float]:
    """For each rank, seconds from its last action to the step's end: syncs and updates.

    Where buckets go out during backwards, these are the least seconds under any orders. Where the
    period is minimised, each rank counts from its own start: that is taken off.
    """
    rest = [-start for start in task.rank_starts] or [0.0] * num_ranks
    for stage, ranks in zip(task.stages, task.stage_ranks, strict=True):
        for rank in ranks:
            rest[rank] += stage.update_time
    # From the last sync back: its ranks end together, so each has the longest way of all.
    for sync in reversed(task.syncs):
        late = sync.time if sync.parts is None else sync.parts.late_time
        if late is not None:
            longest = late + max(rest[rank] for rank in sync.ranks)
            for rank in sync.ranks:
                rest[rank] = longest
    return [least_exposed(task, rank) + seconds for rank, seconds in enumerate(rest)]
