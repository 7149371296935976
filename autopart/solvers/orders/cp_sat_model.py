"""A window of the orders as a model for OR-tools' CP-SAT.

A window has, on each rank, the actions that start between two moments. All orders outside of it
stay. So an action outside is a constant: its head before the window, its tail behind it. With s(x)
for the start of x in the window the model is

    minimise the step
    (1)  s(x) >= result(y)                      x awaits y before the window
    (2)  s(x) >= s(y) + time(y) + sending(y)    x awaits y in the window
    (3)  no two actions on a rank overlap
    (4)  room >= stash                          at each moment, on each rank
    (5)  step >= s(x) + time(x) + tail          the longest way from x to the step's end behind it
    (6)  a backward is whole, or W follows I    where both are in the window

Seconds are whole numbers of a small unit. The model's links have no queue. So the simulator decides
whether the new orders are faster.
"""

import math
from typing import Any, NamedTuple

from autopart.solvers.orders.action_numbers import Orders
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.order_times import OrderTimes
from autopart.stopping.time_limit import time_left

UNITS = 100_000
"""Units of time in a step."""

SECONDS_PER_ACTION = 0.04
"""Solver time for a window, by its actions."""

MOST_SECONDS = 60.0
"""Solver time for the bound."""


class CpSatWindow(NamedTuple):
    """For each rank, the first place of a window and the first place behind it."""

    places: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Actions in the window."""
        return sum(high - low for low, high in self.places)


class CpSatModel:
    """The model of one window, in whole units of time.

    `exact` seconds are rounded to the nearest unit. Else they are rounded down, and the model's
    bound is one of the problem.
    """

    def __init__(self, times: OrderTimes, window: CpSatWindow, *, exact: bool = True) -> None:
        from ortools.sat.python import cp_model  # pyright: ignore[reportMissingImports]

        self.times, self.window, self.exact = times, window, exact
        self.unit = times.step / UNITS
        self.model = cp_model.CpModel()
        self.solver = cp_model.CpSolver()
        self.horizon = UNITS + UNITS // 100 if exact else UNITS
        self.start: dict[int, Any] = {}
        self.end: dict[int, Any] = {}
        self.whole: dict[int, Any] = {}
        """For each backward that may be whole or split, the choice."""
        self.step = self.model.new_int_var(0, self.horizon, "step")
        for rank in range(len(times.orders)):
            self._add_actions(rank)
        for rank in range(len(times.orders)):
            self._add_needs(rank)
            self._add_stash(rank)

    def units(self, seconds: float) -> int:
        """Seconds in whole units."""
        return round(seconds / self.unit) if self.exact else math.floor(seconds / self.unit)

    def _inside(self, rank: int) -> list[int]:
        low, high = self.window.places[rank]
        return self.times.orders[rank][low:high]

    def _add_actions(self, rank: int) -> None:
        """Start, end and interval for each action, and a W for each backward that may be split."""
        times, model = self.times, self.model
        inside = self._inside(rank)
        there = set(inside)
        intervals: list[Any] = []
        for x in inside:
            free = x % 3 == 1 and self._may_turn(x) and (times.whole[x] or x + 1 in there)
            if free:
                self.whole[x] = model.new_bool_var(f"whole {x}")
                model.add_hint(self.whole[x], times.whole[x])
            back = x - 1 if x % 3 == 2 else x
            intervals.append(self._add_action(x, times.head[x], self.whole.get(back)))
            if free and times.whole[x]:
                late = times.head[x] + times.time[x]
                intervals.append(self._add_action(x + 1, late, self.whole[x]))
        model.add_no_overlap(intervals)

    def _may_turn(self, back: int) -> bool:
        times = self.times
        if not times.task.split:
            return False
        stash, waiting = times.kept_bytes(back)
        return times.saved(back) > 0.0 or waiting > stash

    def _add_action(self, x: int, head: float, whole: Any) -> Any:
        times, model = self.times, self.model
        self.start[x] = model.new_int_var(0, self.horizon, f"start {x}")
        model.add_hint(self.start[x], min(self.units(head), self.horizon))
        split_time, whole_time = (self.units(times.time_of(x, whole=w)) for w in (False, True))
        after = self.units(times.after[x])
        seconds: Any = split_time if x % 3 != 1 or not times.whole[x] else whole_time
        if whole is not None:
            seconds = split_time + (whole_time - split_time) * whole
        if whole is None:
            self.end[x] = self.start[x] + seconds
            return model.new_fixed_size_interval_var(self.start[x], seconds + after, f"run {x}")
        self.end[x] = model.new_int_var(0, self.horizon, f"end {x}")
        model.add(self.end[x] == self.start[x] + seconds)
        return model.new_interval_var(
            self.start[x], seconds + after, self.end[x] + after, f"run {x}"
        )

    def _add_needs(self, rank: int) -> None:
        """(1), (2), (5), (6)."""
        times, model = self.times, self.model
        low, high = self.window.places[rank]
        order = times.orders[rank]
        rest = times.ends[rank]
        if high < len(order):
            rest = times.time[order[high]] + times.tail[order[high]]
        free = times.end_of(order[low - 1]) if low else 0.0
        for x in [x for x in self.start if times.rank[x] == rank]:
            model.add(self.start[x] >= self.units(free))
            model.add(self.step >= self.end[x] + self.units(times.after[x] + rest))
            for y in times.before[x]:
                if y in self.end:
                    model.add(self.start[x] >= self.end[y])
            source, target = times.need[x], times.taker[x]
            if source in self.end:
                model.add(self.start[x] >= self.end[source] + self.units(times.sending[source]))
            elif source < times.size:
                model.add(self.start[x] >= self.units(times.result[source]))
            if target >= 0 and target not in self.start:
                way = times.sending[x] + times.time[target] + times.tail[target]
                model.add(self.step >= self.end[x] + self.units(way))
        for back, whole in self.whole.items():
            if times.rank[back] == rank:
                model.add(self.start[back + 1] == self.end[back]).only_enforce_if(whole)

    def _add_stash(self, rank: int) -> None:
        """(4): for each microbatch and stage, the spans from F to W, and from F or W to I."""
        times = self.times
        if times.room is None:
            return
        low, _ = self.window.places[rank]
        level = times.levels[rank][low - 1] if low else 0
        intervals: list[Any] = []
        demands: list[int] = []
        for forward in {x - x % 3 for x in self.start if times.rank[x] == rank}:
            back, weight = forward + 1, forward + 2
            stash, waiting = times.kept_bytes(back)
            begun = self._moment(forward, low, 0)
            turned = self._moment(back, low, 1)
            freed = turned if times.whole[back] and back not in self.whole else None
            freed = self._moment(weight, low, 1) if freed is None else freed
            # Bytes that are there when the window begins are counted below, not in `level`.
            if forward not in self.start:
                level -= waiting if _is_zero(turned) else stash
            spans = [(begun, freed, min(stash, waiting))]
            spans.append(
                (begun, turned, stash - waiting)
                if stash > waiting
                else (turned, freed, waiting - stash)
            )
            for since, until, number in spans:
                if number and not _is_zero(until):
                    length = self.model.new_int_var(0, self.horizon, "")
                    intervals.append(self.model.new_interval_var(since, length, until, ""))
                    demands.append(number)
        self.model.add_cumulative(intervals, demands, times.room[rank] - level)

    def _moment(self, x: int, low: int, side: int) -> Any:
        """Start (side 0) or end (side 1); 0 before the window, the horizon behind it."""
        if x in self.start:
            return (self.start, self.end)[side][x]
        return 0 if self.times.place[x] < low else self.horizon

    def solve(self, bound: float, effort: Effort) -> Orders | None:
        """Orders with a shorter step, if there are any and the time suffices."""
        self.model.add(self.step <= UNITS - 1)
        self.model.add(self.step >= math.floor(bound / self.unit))
        return self._orders() if self._run(effort) else None

    def least(self, bound: float, effort: Effort) -> float:
        """A lower bound of the step in seconds, at least `bound`."""
        self._add_turns()
        self.model.add(self.step >= math.floor(bound / self.unit))
        self._run(effort)
        return max(0.0, self.solver.best_objective_bound) * self.unit

    def _add_turns(self) -> None:
        """On each stage, microbatches run in the order of their numbers, in F, in I and in W.

        Any orders can be renamed so where each stage has one rank: microbatches are alike. If two
        of them change places between two stages, they exchange their names behind that point.
        """
        if any(len(ranks) > 1 for ranks in self.times.task.stage_ranks):
            return
        count = self.times.task.num_microbatches
        for x in self.start:
            turned = x % 3 == 2 and (x - 1 in self.whole or x + 2 in self.whole)
            if x // 3 % count < count - 1 and x + 3 in self.start and not turned:
                self.model.add(self.start[x + 3] >= self.end[x])

    def _run(self, effort: Effort) -> bool:
        """Minimise the step; False where no orders were found."""
        from ortools.sat.python import cp_model  # pyright: ignore[reportMissingImports]

        self.model.minimize(self.step)
        seconds = max(1.0, SECONDS_PER_ACTION * self.window.size) if self.exact else MOST_SECONDS
        parameters = self.solver.parameters
        parameters.max_time_in_seconds = min(seconds, time_left(effort.deadline))
        # One worker and one seed: where time does not end it, a search repeats itself.
        parameters.num_workers = 1
        parameters.random_seed = 0
        status = self.solver.solve(self.model)
        return status in (cp_model.OPTIMAL, cp_model.FEASIBLE)

    def _when(self, x: int) -> tuple[int, int, int]:
        """The start and end of an action in the solution; F is before I, and I before W."""
        value = self.solver.value
        return int(value(self.start[x])), int(value(self.end[x])), x % 3

    def _orders(self) -> Orders:
        times, value = self.times, self.solver.value
        whole = list(times.whole)
        for back, choice in self.whole.items():
            whole[back] = bool(value(choice))
        numbers: list[tuple[int, ...]] = []
        for rank, order in enumerate(times.orders):
            low, high = self.window.places[rank]
            inside = [
                x for x in self.start if times.rank[x] == rank and not (x % 3 == 2 and whole[x - 1])
            ]
            inside.sort(key=self._when)
            numbers.append((*order[:low], *inside, *order[high:]))
        return Orders(tuple(numbers), tuple(whole))


def _is_zero(moment: Any) -> bool:
    """Whether a moment is the constant 0; variables cannot be compared."""
    return isinstance(moment, int) and moment == 0
