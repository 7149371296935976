"""The search over many problems, such as all rank groups on a thousand GPUs: the least bound comes first.

`search_sizes` gives each problem a part of every phase. With hundreds of problems no part would be long enough. Here
each problem has a lower bound, and the problem with the least one is next:

    1   at a glance                 autopart/bounds/glance.py: a few milliseconds
    2   the least of all shapes     the quick bounds with which its search begins
    3   its search                  all phases but the last; it prunes with the best value of all problems

A problem whose bound reaches the best value is never searched. The last phase closes layouts that are still open, again from
the least bound on, until the time is up.
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
from autopart.search.phases import run_phase
from autopart.stopping.time_limit import OutOfTime, check_time, deadline_in, passed, time_left

SHARE_OF_SEARCH = 0.85
"""Part of the time until layouts are closed."""
SHARE_OF_ONE = 0.1
"""Part of the time that is left for one turn of the problem with the least bound."""
FIRST_LOOKS = 2
"""Phases before all shapes are visited."""
LEAST_SECONDS = 3.0
"""Seconds for one problem at least, as long as the time limit allows."""


class ManySearches:
    """The searches of many problems without stage degrees and with equal replicas."""

    def __init__(self, problems: Sequence[Problem], solver: SolverName, beat: float) -> None:
        self.problems, self.value = problems, beat
        self.solver: SolverName = solver
        self.searches: dict[int, BranchAndBound] = {}
        """The searches that were run, by the place of their problem."""
        self.bounds = [0.0] * len(problems)
        """For each problem seconds that none of its plans can beat."""
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
            self._search(deadline_in(SHARE_OF_SEARCH * time_left(deadline)))
            self._close(deadline)
        except OutOfTime:
            return

    def _search(self, until: float) -> None:
        waiting = [(bound, at) for at, bound in enumerate(self.bounds) if at not in self.errors]
        heapq.heapify(waiting)
        begun: dict[int, BranchAndBound] = {}
        while waiting and not passed(until):
            bound, at = heapq.heappop(waiting)
            if bound >= self.value:
                return
            search = begun.get(at)
            if search is not None:
                self._run(at, search, until)
                # Shapes that are left wait for their turn, by the least bound among them.
                if search.unvisited < self.value:
                    heapq.heappush(waiting, (max(bound, search.unvisited), at))
                continue
            search = begun[at] = BranchAndBound(self.problems[at], self.solver, self.value)
            self.bounds[at] = max(bound, search.quick_bound)
            heapq.heappush(waiting, (self.bounds[at], at))

    def _run(self, at: int, search: BranchAndBound, until: float) -> None:
        """Run all phases of a search but the last."""
        is_new = at not in self.searches
        self.searches[at] = search
        search.best.beat = self.value
        left = time_left(until)
        own = deadline_in(min(left, max(LEAST_SECONDS, SHARE_OF_ONE * left)))
        # With a value to beat most shapes are excluded by bounds, and a start with fewer choices says little.
        first = 0 if is_new and (self.value == math.inf or search.found.custom) else FIRST_LOOKS
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
