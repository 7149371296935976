"""The decision with the smallest bottleneck, and a value that none can beat.

Shapes (stages, replicas) are visited by their quick bounds. In each layout of a shape the path over the
cuts whose largest stage is smallest is found by dynamic programming, which is exact: with all cuts
listed, the best layout is the answer and its own proof. Of decisions with the same bottleneck the one with the
shorter simulated step is taken.

A layer graph with too many cuts to list them is cut along its own order and by the integer program;
the lower bound is then the quick one of the shapes.
"""

import time

from autopart.cuts import all_cuts, list_all, partition_of
from autopart.layouts import Layout, layouts, shapes
from autopart.pricing import Decision, fits, minimised, price
from autopart.problem import Problem
from autopart.search import ROUNDING, Outcome, SolverName
from autopart.solvers import chain, ilp, parameters, uniform
from autopart.stage_load import Partition
from autopart.steady import shape_bottlenecks, stage_bottlenecks


def search(
    problem: Problem, solver: SolverName, deadline: float, beat: float = float("inf")
) -> Outcome:
    """The decision with the smallest bottleneck; None where nothing fits or nothing is below `beat`.

    `deadline` is a reading of `time.perf_counter()`; what is open then lowers the bound.
    """
    return _SteadySearch(problem, solver, deadline, beat).run()


class _SteadySearch:
    def __init__(self, problem: Problem, solver: SolverName, deadline: float, beat: float) -> None:
        self.problem, self.solver, self.deadline = problem, solver, deadline
        self.by: SolverName = solver
        self.value, self.step_time = beat, float("inf")
        self.best: Decision | None = None
        self.cuts = all_cuts(problem.graph)

    def run(self) -> Outcome:
        quick = shape_bottlenecks(self.problem, shapes(self.problem))
        order = sorted((bound, shape) for shape, bound in quick.items() if bound is not None)
        proven = float("inf")
        for bound, shape in order:
            if bound >= self.value:
                break
            late = time.perf_counter() > self.deadline and self.value < float("inf")
            for layout in layouts(self.problem, *shape):
                proven = min(proven, bound if late else self._visit(layout, bound))
        return Outcome(self.best, self.by, min(proven, self.value), 0)

    def _visit(self, layout: Layout, quick: float) -> float:
        """Look for a better decision in a layout; returns what none in it can beat."""
        stages = len(layout.stage_ranks)
        if self.solver == "uniform":
            self._take(layout, uniform.solve(len(self.problem.graph.layers), stages), "uniform")
        if self.solver == "parameters":
            self._take(layout, parameters.solve(self.cuts, stages), "parameters")
        found = chain.best_path(
            stage_bottlenecks(self.problem, layout, self.cuts), self.cuts.nested
        )
        along = None if found is None else partition_of(self.cuts, found.path)
        if self.solver in ("auto", "dp") and along is not None:
            self._take(layout, along, "dp")
        listed = list_all(self.cuts, stages)
        if self.solver == "ilp" or (self.solver == "auto" and not listed):
            self._take_any_order(layout, None if self.solver == "ilp" else along)
        if not listed:
            return quick
        return float("inf") if found is None else found.largest

    def _take_any_order(self, layout: Layout, along: Partition | None) -> None:
        partition = ilp.solve(self.problem, layout, along, self.deadline)
        if partition is not None:
            self._take(layout, partition, "ilp")

    def _take(self, layout: Layout, partition: Partition, by: SolverName) -> None:
        decision = price(self.problem, layout, partition)
        if not fits(self.problem, decision):
            return
        value = minimised(self.problem, decision.prediction, layout.stage_ranks)
        step = decision.prediction.step_time
        if abs(value - self.value) <= ROUNDING * value and self.best is not None:
            better = step < self.step_time * (1 - ROUNDING)
        else:
            better = value < self.value
        if better:
            self.best, self.by = decision, by
            self.value, self.step_time = min(value, self.value), step
