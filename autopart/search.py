"""Branch and bound on the simulated step: the fastest decision, and a value that none can beat.

Shapes (stages, replicas) are visited by their quick bounds. In each layout of a shape (its ranks and
its schedule) the chain solver proposes partitions, among them the one whose largest stage bound is
smallest, and the cuts of the best are moved by a layer while that makes the simulated step faster.
What is left open are the layouts whose smallest bound lies below the best step. There every partition
whose stages all have bounds below a value is simulated, for values that rise from the bound towards
the best step, until the layout is closed or the budget is spent. The lower bound is the best step,
or the smallest value up to which some layout is not yet closed.

A layer graph with several topological orders has no such list of all partitions: there the chain
solver's and the integer program's proposals are taken, and the lower bound is that of the shapes.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from autopart.bounds import partitions_below, shape_bounds, stage_bounds
from autopart.cost import Number, Partition, StageLoad, interval_loads
from autopart.graph import is_chain
from autopart.pricing import Decision, fits, most_bytes, price
from autopart.problem import Layout, Problem, layouts, shapes
from autopart.solvers import chain, ilp, parameters, uniform

SolverName = Literal["auto", "dp", "ilp", "uniform", "parameters"]
SOLVERS: tuple[SolverName, ...] = ("auto", "dp", "ilp", "uniform", "parameters")

SIMULATIONS = 2000
"""Partitions simulated to close what the bounds leave open, for each problem."""

STEPS_TO_BEST = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Values between a layout's bound and the best step at which the lower bound is raised."""


class Outcome(NamedTuple):
    """The fastest decision found, by whom, and the lower bound of the problem."""

    best: Decision | None
    solver: SolverName
    lower_bound: float
    simulated: int
    """Partitions with all stage bounds below `lower_bound`: those that a check must simulate."""


def search(problem: Problem, solver: SolverName, deadline: float) -> Outcome:
    """The fastest decision of a problem; None where the solver finds nothing that fits.

    `deadline` is a reading of `time.perf_counter()`; what is open then lowers the bound.
    """
    return _Search(problem, solver, deadline).run()


class _Open(NamedTuple):
    """A layout whose smallest bound lies below the best step."""

    bound: float
    layout: Layout


class _Search:
    def __init__(self, problem: Problem, solver: SolverName, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.solver: SolverName = solver
        self.loads: StageLoad = interval_loads(problem.graph)
        self.chain = is_chain(problem.graph)
        self.best: Decision | None = None
        self.by: SolverName = solver

    def run(self) -> Outcome:
        quick = shape_bounds(self.problem, shapes(self.problem))
        order = sorted((bound, shape) for shape, bound in quick.items() if bound is not None)
        open_layouts: list[_Open] = []
        for bound, shape in order:
            if bound >= self.step_time:
                break
            for layout in layouts(self.problem, *shape):
                open_layouts += self._visit(layout, bound)
        if self.best is None:
            return Outcome(None, self.solver, 0.0, 0)
        return self._prove(sorted(open_layouts, key=lambda o: o.bound))

    @property
    def step_time(self) -> float:
        return float("inf") if self.best is None else self.best.prediction.step_time

    def _visit(self, layout: Layout, quick: float) -> list[_Open]:
        """Try the proposals for a layout; it stays open where its bound allows a faster step."""
        if not self.chain:
            self._propose_any_order(layout)
            return [_Open(quick, layout)]
        bounds = stage_bounds(self.problem, layout, self.loads)
        cut = chain.cut_chain(bounds)
        if cut is None:
            return []
        if cut.largest < self.step_time or self.solver in ("uniform", "parameters"):
            self._propose_cuts(layout, bounds, cut.partition)
        return [_Open(cut.largest, layout)]

    def _propose_cuts(self, layout: Layout, bounds: Sequence[Number], by_bounds: Partition) -> None:
        before = self.best
        if self.solver in ("auto", "dp"):
            proposals = dict.fromkeys((by_bounds, *chain.solve(self.problem, layout, self.loads)))
            for partition in proposals:
                self._take(layout, partition, "dp")
            if self.best is not None and self.best is not before:
                self._move_cuts(bounds)
        else:
            self._propose_any_order(layout)

    def _propose_any_order(self, layout: Layout) -> None:
        num_stages = len(layout.stage_ranks)
        if self.solver == "uniform":
            self._take(layout, uniform.solve(len(self.problem.graph.layers), num_stages), "uniform")
        elif self.solver == "parameters":
            cut = parameters.solve(self.loads.weight_bytes, num_stages)
            self._take(layout, cut, "parameters")
        else:
            self._propose_dp_and_ilp(layout)

    def _propose_dp_and_ilp(self, layout: Layout) -> None:
        cuts = [] if self.solver == "ilp" else chain.solve(self.problem, layout, self.loads)
        for partition in cuts:
            self._take(layout, partition, "dp")
        if self.solver != "dp" and (len(layout.stage_ranks) > 1 or self.solver == "ilp"):
            first = cuts[0] if cuts else None
            found = ilp.solve(self.problem, layout, first, self.deadline)
            if found is not None:
                self._take(layout, found, "ilp")

    def _take(self, layout: Layout, partition: Partition, by: SolverName) -> None:
        decision = price(self.problem, layout, partition)
        if fits(self.problem, decision) and _rank(decision) < _rank(self.best):
            self.best, self.by = decision, by

    def _move_cuts(self, bounds: Sequence[Number]) -> None:
        """Move single cuts of the best partition by one layer while that helps."""
        moved = True
        while moved and self.best is not None and time.perf_counter() < self.deadline:
            here = self.best
            for partition in _neighbours(here.partition):
                if _largest(bounds, partition) < self.step_time:
                    self._take(here.layout, partition, "dp")
            moved = self.best is not here

    def _prove(self, open_layouts: Sequence[_Open]) -> Outcome:
        assert self.best is not None
        left = SIMULATIONS if self.chain and self.solver in ("auto", "dp") else 0
        proven = self.step_time
        for place in open_layouts:
            if place.bound >= min(proven, self.step_time):
                continue
            value, spent = self._close(place, left)
            left -= spent
            proven = min(proven, value)
        proven = min(proven, self.step_time)
        return Outcome(self.best, self.by, proven, self._simulated_below(open_layouts, proven))

    def _close(self, place: _Open, budget: int) -> tuple[float, int]:
        """Simulate what a layout may hold below the best step; returns the value up to which
        nothing is faster, and how many partitions were simulated."""
        if budget <= 0:
            return place.bound, 0
        bounds = stage_bounds(self.problem, place.layout, self.loads)
        proven, spent = place.bound, 0
        for share in STEPS_TO_BEST:
            aim = place.bound + share * (self.step_time - place.bound)
            below = list(itertools.islice(partitions_below(bounds, aim), budget - spent + 1))
            spent += len(below)
            if spent > budget or time.perf_counter() > self.deadline:
                return proven, budget
            for partition in below:
                self._take(place.layout, partition, "dp")
            proven = min(aim, self.step_time)
        return proven, spent

    def _simulated_below(self, open_layouts: Sequence[_Open], value: float) -> int:
        """How many partitions the check of `value` will have to simulate."""
        if not self.chain:
            return 0
        return sum(
            sum(
                1 for _ in partitions_below(stage_bounds(self.problem, o.layout, self.loads), value)
            )
            for o in open_layouts
            if o.bound < value
        )


def _rank(decision: Decision | None) -> tuple[float, int]:
    if decision is None:
        return float("inf"), 0
    return decision.prediction.step_time, most_bytes(decision)


def _neighbours(partition: Partition) -> Iterator[Partition]:
    ends = [stage[-1] + 1 for stage in partition]
    for cut in range(len(ends) - 1):
        for by in (-1, 1):
            moved = [*ends[:cut], ends[cut] + by, *ends[cut + 1 :]]
            starts = [0, *moved[:-1]]
            if all(a < b for a, b in zip(starts, moved, strict=True)):
                yield tuple(tuple(range(a, b)) for a, b in zip(starts, moved, strict=True))


def _largest(bounds: Sequence[Number], partition: Partition) -> float:
    return max(
        float(bound[stage[0], stage[-1] + 1])
        for bound, stage in zip(bounds, partition, strict=True)
    )
