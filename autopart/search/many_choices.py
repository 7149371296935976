"""The search over many problems, such as all rank groups on a thousand GPUs: the least bound comes first.

`search_sizes` gives each problem a part of every phase. With hundreds of problems no part would be long enough. Here
each problem has a lower bound, and the problem with the least one is next:

    1   at a glance                 autopart/bounds/glance.py: a few milliseconds
    2   the least of all shapes     the quick bounds with which its search begins
    3   the least of all layouts    autopart/search/layouts_in_order.py: the layouts of one shape after the other
    4   a visit of that layout      its best partitions; the best value of all problems prunes

Where a plan may have orders of its own, all phases of the problem's search but the last stand in place of steps 3 and 4. A problem
whose bound reaches the best value is never searched. Then layouts that are still open are closed, again from the least bound on,
until the time is up.
"""

import heapq
import math
from collections.abc import Sequence

from autopart.bounds.glance import least_at_a_glance
from autopart.errors import InfeasibleError
from autopart.records.layouts import shapes
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.incumbent import Outcome
from autopart.search.layouts_in_order import LayoutsInOrder
from autopart.search.phases import run_phase
from autopart.stopping.time_limit import OutOfTime, check_time, deadline_in, passed, time_left

SHARE_OF_SEARCH = 0.85
"""Part of the time until layouts are closed."""
SHARE_OF_ONE = 0.1
"""Part of the time that is left for one visit."""
SHARE_WITHOUT_PLAN = 0.4
"""Part of the search's time after which the best layout so far is visited, if there is no plan yet."""
FIRST_LOOKS = 2
"""Phases before all shapes are visited."""
LEAST_SECONDS = 3.0
"""Seconds for one visit at least, as long as the time limit allows."""


class ManySearches:
    """The searches of many problems without stage degrees and with equal replicas."""

    def __init__(self, problems: Sequence[Problem], solver: SolverName, beat: float) -> None:
        self.problems, self.value = problems, beat
        self.solver: SolverName = solver
        self.searches: dict[int, BranchAndBound] = {}
        """The searches that were run, by the place of their problem."""
        self.bounds = [0.0] * len(problems)
        """For each problem seconds that none of its plans can beat."""
        self._least_visited = math.inf
        """The least bound of a layout that was visited: only closing can raise it."""
        self.errors: dict[int, InfeasibleError] = {}
        """Problems whose demands leave no shape. They have no bound, also where the search ends before their turn."""
        for at, problem in enumerate(problems):
            try:
                shapes(problem)
            except InfeasibleError as error:
                self.errors[at], self.bounds[at] = error, math.inf

    def run(self, deadline: float) -> None:
        """Search until a deadline."""
        try:
            for at, problem in enumerate(self.problems):
                check_time()
                if at not in self.errors:
                    self.bounds[at] = least_at_a_glance(problem)
            self._search(deadline_in(SHARE_OF_SEARCH * time_left(deadline)), deadline)
            self._close(deadline)
        except OutOfTime:
            return

    def _search(self, until: float, deadline: float) -> None:
        """Search until a time, or until the deadline as long as the lower bound rests on what waits."""
        waiting = [(bound, at) for at, bound in enumerate(self.bounds) if at not in self.errors]
        heapq.heapify(waiting)
        begun: dict[int, LayoutsInOrder] = {}
        # Without a plan nothing is pruned. So at some time the best layout so far must do.
        patience = deadline_in(SHARE_WITHOUT_PLAN * time_left(until))
        while waiting and not passed(deadline):
            if passed(until) and self._least_visited <= waiting[0][0]:
                return
            if self.value == math.inf and passed(patience):
                self._visit_least(begun, deadline)
            bound, at = heapq.heappop(waiting)
            if bound >= self.value:
                return
            if at not in begun:
                search = BranchAndBound(self.problems[at], self.solver, self.value)
                begun[at] = LayoutsInOrder(search)
                self.bounds[at] = max(bound, search.quick_bound)
                heapq.heappush(waiting, (self.bounds[at], at))
                continue
            choice = begun[at]
            if choice.least == math.inf and not choice.search.found.custom:
                # Its last layout was visited out of turn.
                continue
            if choice.search.found.custom:
                self._run(at, choice.search, until)
                left = choice.search.unvisited
            else:
                self._go_on(at, choice, deadline)
                left = choice.least
            # What is left waits for its turn, by its least bound.
            if left < self.value:
                heapq.heappush(waiting, (max(bound, left), at))

    def _go_on(self, at: int, choice: LayoutsInOrder, until: float) -> None:
        """Bound the layouts of one more shape, or visit the layout with the least bound."""
        self.searches[at] = choice.search
        if choice.search.unvisited < choice.least_layout:
            choice.bound_shape(until)
        else:
            self._visit(choice, until)

    def _visit_least(self, begun: dict[int, LayoutsInOrder], until: float) -> None:
        """Visit the layout with the least bound of all, though shapes are left below it."""
        choice = min(begun.values(), key=lambda one: one.least_layout, default=None)
        if choice is not None and choice.least_layout < math.inf:
            self._visit(choice, until)

    def _visit(self, choice: LayoutsInOrder, until: float) -> None:
        self._least_visited = min(self._least_visited, choice.least_layout)
        choice.search.best.beat = self.value
        choice.visit_layout(self._end_of_turn(until))
        self.value = min(self.value, choice.search.best.own_value)

    def _end_of_turn(self, until: float) -> float:
        left = time_left(until)
        return deadline_in(min(left, max(LEAST_SECONDS, SHARE_OF_ONE * left)))

    def _run(self, at: int, search: BranchAndBound, until: float) -> None:
        """Run all phases of a search with own orders but the last."""
        is_new = at not in self.searches
        self.searches[at] = search
        self._least_visited = min(self._least_visited, search.quick_bound)
        search.best.beat = self.value
        own = self._end_of_turn(until)
        # Own orders gain most with fewer choices, so each search begins with them.
        first = 0 if is_new else FIRST_LOOKS
        for phase in search.phases[first:-1]:
            run_phase(phase, phase.share, own)
        self.value = min(self.value, search.best.own_value)

    def _close(self, deadline: float) -> None:
        """Close what is open, the problem with the least bound first."""
        by_bound = sorted(self.searches, key=lambda at: self.searches[at].outcome().lower_bound)
        for place, at in enumerate(by_bound):
            search = self.searches[at]
            search.best.beat = self.value
            if passed(deadline):
                return
            # The least bound of all is the bound: the first ones have more of the time.
            share = 1.0 if place == len(by_bound) - 1 else 0.5
            run_phase(search.phases[-1], share, deadline)
            self.value = min(self.value, search.best.own_value)

    def outcomes(self) -> list[Outcome]:
        """The outcome of each problem; a bound reaches no further than the best value."""
        found: list[Outcome] = []
        for at, bound in enumerate(self.bounds):
            search = self.searches.get(at)
            if search is None:
                proven = bound if at in self.errors else min(bound, self.value)
                found.append(Outcome(None, self.solver, proven, 0))
                continue
            own = search.outcome()
            found.append(own._replace(lower_bound=max(own.lower_bound, min(bound, self.value))))
        return found

    @property
    def progress(self) -> str:
        """The part of the problems that was searched, in words."""
        return f"{len(self.searches)} of {len(self.problems)} choices of rank group were searched"
