"""Branch and bound over shapes and layouts: the best decision, and a value that none can beat.

Shapes (stages, replicas) are visited by their quick bounds. In each layout of a shape (its ranks
and its schedule) the search tries proposals (autopart/search/layout_search.py). Then some layouts
are open: their smallest bound lies below the best value. There the search simulates every partition
whose stages all have bounds below a threshold. The threshold rises from the layout's bound to the
best value, until the layout is closed or the budget is spent. The lower bound is the best value, or
the smallest threshold up to which some layout is not yet closed.

Objectives differ in their bounds, their values and their proposals (autopart/search/objectives.py).
The bottleneck attains its bounds: the best layout is the answer, and nothing is simulated to close
the others. A layer graph with too many cuts has no list of all partitions. There the lower bound is the
smallest of a shape.
Where a plan may have orders of its own, named schedules are the start
(autopart/search/own_orders.py). The lower bound is then the smallest that holds for every order on
some placement, and nothing is listed.

The search runs in phases (autopart/search/phases.py). Fewer choices come first: their best plan is the start. A
phase that runs out of time leaves shapes and layouts open. The lower bound is then the least of their bounds.
"""

import contextlib

from autopart.bounds.any_order_shapes import Shape
from autopart.bounds.of_layout import is_needed
from autopart.cost.cuts import list_all
from autopart.errors import InfeasibleError
from autopart.pricing import Decision, fits, price
from autopart.records.layouts import layouts, shapes
from autopart.records.plan import SolverName
from autopart.records.problem import CUSTOM, Problem
from autopart.search import every_assignment
from autopart.search.closing import Raised
from autopart.search.first_orders import propose_first_orders
from autopart.search.incumbent import Incumbent, Outcome
from autopart.search.layout_search import ACTIONS, LayoutSearch
from autopart.search.open_layout import OpenLayout
from autopart.search.own_orders import propose_own_orders
from autopart.search.own_pairs import propose_own_pairs
from autopart.search.phases import (
    SHARE_OF_LOOK,
    SHARE_OF_START,
    Phase,
    fewer_policies,
    run_phases,
    with_fewer_choices,
)
from autopart.search.raised_bounds import raised_together
from autopart.stopping.time_limit import OutOfTime, check_time, deadline_in, time_left

LOOKED_AT, TRIED = 8, 24
"""Shapes that a first look bounds, and those that it tries: not all hold the model."""

SHARE_OF_LAST_SHAPES = 0.5
"""The share of the time behind own orders in which shapes are only bounded."""


class BranchAndBound:
    """The search over all shapes of a problem.

    Raises InfeasibleError where the demands leave no shape.
    """

    def __init__(self, problem: Problem, solver: SolverName, beat: float = float("inf")) -> None:
        self.problem = problem
        self.solver: SolverName = solver
        self.found = LayoutSearch(problem, solver, beat)
        quick = self.found.objective.bounds.of_shapes(problem, shapes(problem))
        self.shapes = sorted((bound, shape) for shape, bound in quick.items() if bound is not None)
        """Shapes that may hold the model, by their quick bounds."""
        self.quick_bound = self.shapes[0][0] if self.shapes else float("inf")
        self.num_visited = 0
        self.unvisited = self.quick_bound
        """The smallest quick bound of the shapes that are not visited yet."""
        self.open: list[OpenLayout] = []
        """Visited layouts on which the lower bound rests; `named` has the others."""
        self.named: list[OpenLayout] = []
        self.closed: dict[OpenLayout, Raised] = {}
        """For each layout the threshold below which every partition is excluded."""
        self._start: BranchAndBound | None = None
        """The search with fewer policies, after a first look."""
        self._looked_at: list[OpenLayout] = []
        """Layouts that a first look has bounded."""

    @property
    def best(self) -> Incumbent:
        """The best decision so far."""
        return self.found.best

    @property
    def promise(self) -> float:
        """Seconds that its best decision may take: the least bound in a first look, if any."""
        start = self._start
        if start is None:
            return self.quick_bound
        return min((place.bound for place in start._looked_at), default=float("inf"))

    @property
    def phases(self) -> list[Phase]:
        """A first look, fewer choices, then all shapes, own orders, named schedules, and the open layouts."""
        look, close = Phase(SHARE_OF_LOOK, self._look), Phase(1.0, self._close)
        start = Phase(SHARE_OF_START, self._start_with_fewer_choices)
        if not self.found.custom:
            return [look, start, Phase(1.0, self._visit_shapes), close]
        # Own orders gain more than the last shapes do, so these come behind them.
        some, own = Phase(0.25, self._visit_shapes), Phase(0.75, self._own_orders)
        pairs = Phase(0.3, self._own_pairs)
        rest, named = Phase(0.5, self._visit_shapes), Phase(0.5, self._close_named)
        return [look, start, some, own, pairs, rest, named, close]

    @property
    def progress(self) -> str:
        """The part of the space that was searched, in words."""
        return f"{self.num_visited} of {len(self.shapes)} shapes (stages x replicas) were searched"

    def _look(self, until: float) -> None:
        """Bound layouts under fewer policies, on which most stages do not fit into memory."""
        fewer = fewer_policies(self.problem)
        if fewer is None or self.solver not in ("auto", "dp"):
            return
        with contextlib.suppress(InfeasibleError):
            self._start = BranchAndBound(fewer, self.solver, self.best.value)
            self._start._bound_first_shapes()

    def _bound_first_shapes(self) -> None:
        """Bound the layouts of the first few shapes that hold the model."""
        found, holding = self.found, set[Shape]()
        for bound, shape in self.shapes[:TRIED]:
            if bound >= self.best.value or len(holding) == LOOKED_AT:
                break
            for layout in layouts(self.problem, *shape):
                if not list_all(found.cuts, len(layout.stage_ranks)):
                    continue
                least = every_assignment.least_of_root(found, layout)
                if least is not None:
                    self._looked_at.append(OpenLayout(max(least, bound), layout))
                    holding.add(shape)

    def _visit_looked_at(self, until: float) -> None:
        """Visit the layouts of a first look by their bounds."""
        self.found.deadline = until
        for place in sorted(self._looked_at, key=lambda place: place.bound):
            if place.bound >= self.best.value or self.found.out_of_time():
                break
            every_assignment.visit(self.found, place.layout, place.bound)

    def _start_with_fewer_choices(self, until: float) -> None:
        """Take the best decision under fewer choices.

        Fewer policies say little where memory is short. There only the layouts of the first look are
        visited.
        """
        if self._start is not None and self._start._looked_at:
            self._start.best.beat = self.best.value
            try:
                self._start._visit_looked_at(until)
            finally:
                self._take_start(self._start)
            return
        fewer = with_fewer_choices(self.problem)
        try:
            start = BranchAndBound(fewer, self.solver, self.best.value) if fewer else None
        except InfeasibleError:
            return
        if start is None:
            return
        start.found.looks_for_leanest = False
        run_phases(start, until)
        self._take_start(start)

    def _take_start(self, start: "BranchAndBound") -> None:
        if start.best.decision is not None:
            self.start_from(start.best.decision, start.best.by)

    def start_from(self, decision: Decision, by: SolverName) -> None:
        """Take a decision that was found under fewer choices."""
        own = price(self.problem, decision.layout, decision.partition, decision.orders)
        if fits(self.problem, own):
            self.best.offer(own, by)
            self.found.best_of_layout[own.layout] = own

    def _visit_shapes(self, until: float, *, bounds_only: bool = False) -> None:
        """Visit shapes by their quick bounds, until these reach the best value or time is up.

        With `bounds_only` it skips layouts on which no bound rests.
        """
        self.found.deadline = until
        for bound, shape in self.shapes[self.num_visited :]:
            self.unvisited = bound
            if bound >= self.best.value:
                break
            if self.found.out_of_time():
                return
            seen: dict[bool, list[OpenLayout]] = {True: [], False: []}
            for layout in layouts(self.problem, *shape):
                check_time()
                needed = is_needed(self.problem, layout)
                if needed or not bounds_only:
                    place = every_assignment.visit(self.found, layout, bound)
                    seen[needed] += [place] if place is not None else []
            # A shape counts when all its layouts are visited.
            self.open, self.named = self.open + seen[True], self.named + seen[False]
            self.num_visited += 1
        self.unvisited = float("inf")

    def _own_orders(self, until: float) -> None:
        """Optimize orders for the best decisions on some placements."""
        self.found.deadline = until
        if self.best.value == float("inf"):
            places = sorted(self.open, key=lambda place: place.bound)
            own = (place.layout for place in places if place.layout.schedule == CUSTOM)
            propose_first_orders(self.found, own)
        # The shape whose visit ran out of time comes with its quick bound.
        unfinished = [
            OpenLayout(bound, layout)
            for bound, shape in self.shapes[self.num_visited : self.num_visited + 1]
            if bound < self.best.value
            for layout in layouts(self.problem, *shape)
            if layout.schedule == CUSTOM
        ]
        propose_own_orders(self.found, [*self.open, *unfinished])

    def _own_pairs(self, until: float) -> None:
        """Choose overlapped pairs in the best decision's orders."""
        self.found.deadline = until
        propose_own_pairs(self.found)

    def _close_named(self, until: float) -> None:
        """Close layouts of named schedules, so that no plan of such a schedule alone is faster."""
        self.found.deadline = until
        every_assignment.close_named(self.found, self.named)

    def _close(self, until: float) -> None:
        """Close layouts in the order of their bounds."""
        self.found.deadline = until
        self._raise_own_orders(until)
        best, left = self.best, self._actions_to_close()
        proven = min(best.value, self.unvisited)
        for place in sorted(self.open, key=lambda place: place.bound):
            if place.bound >= min(proven, best.value):
                break
            raised = self._close_layout(place, left)
            left -= raised.actions
            if place not in self.closed or self.closed[place].proven < raised.proven:
                self.closed[place] = raised
            raised = self.closed[place]
            proven = min(proven, raised.proven)

    def _raise_own_orders(self, until: float) -> None:
        """Raise the bounds of all open layouts, where no list of partitions closes them."""
        if not self.found.custom or self.found.objective.bounds.attained:
            return
        # The shapes that are left gain little. Their bounds are found without their plans.
        self._visit_shapes(deadline_in(SHARE_OF_LAST_SHAPES * time_left(until)), bounds_only=True)
        self.found.deadline = until
        value = raised_together(self.found, self.open, min(self.best.value, self.unvisited))
        for place in self.open:
            if place.bound < value:
                self.closed[place] = Raised(value, 0, 0)

    def _actions_to_close(self) -> int:
        """The budget of actions; 0 where bounds alone say the lower bound."""
        alone = self.found.custom or self.found.objective.bounds.attained
        return ACTIONS if self.solver in ("auto", "dp") and not alone else 0

    def _close_layout(self, place: OpenLayout, actions: int) -> Raised:
        """The value up to which a layout has nothing better."""
        if not self._lists_all(place):
            return Raised(place.bound, 0, 0)
        return every_assignment.raise_bound(self.found, place, actions)

    def _lists_all(self, place: OpenLayout) -> bool:
        return list_all(self.found.cuts, len(place.layout.stage_ranks))

    def outcome(self) -> Outcome:
        """The best decision and the lower bound, from everything that is done so far."""
        best = self.best
        left = min(best.value, self.unvisited)
        proven = min((self._proven(place) for place in self.open), default=left)
        proven = min(proven, left)
        try:
            simulated = sum(self._count_below(place, proven) for place in self.open)
        except OutOfTime:
            # Bounds alone need nothing simulated.
            proven = min((place.bound for place in self.open), default=left)
            proven, simulated = min(proven, left), 0
        return Outcome(best.decision, best.by, proven, simulated)

    def _proven(self, place: OpenLayout) -> float:
        """Seconds up to which a layout has nothing better."""
        return self.closed[place].proven if place in self.closed else place.bound

    def _count_below(self, place: OpenLayout, value: float) -> int:
        """Partitions that a check must simulate in a layout to prove a value."""
        if place.bound >= value or not self._lists_all(place) or not self._actions_to_close():
            return 0
        closed = self.closed.get(place)
        if closed is not None and closed.proven == value and closed.simulated is not None:
            return closed.simulated
        return every_assignment.count_below(self.found, place.layout, value)
