"""The best decision so far, and everything that one layout adds to it.

Where all cuts are listed, a visit finds the path whose largest stage bound is smallest. It bounds
the layout. Where its decision attains that bound, the layout is solved. Else the objective proposes
paths, and the cuts of the best path move by one layer while that makes the step shorter.

A layer graph with too many cuts has no list of all partitions. There the proposals run along the
graph's own order, and the integer program looks at all others.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import StagePolicies, chooses_by_rank, fits_together
from autopart.bounds.objectives import TOLERANCE
from autopart.bounds.of_layout import LayoutBounds
from autopart.bounds.rank_groups import Inside
from autopart.certificate.fastest_choices import fastest_choices
from autopart.cost.cuts import Cuts, all_cuts, partition_keeps_pins, partition_of
from autopart.pricing import Decision, compile_layout, fits, may_beat, price, price_paths
from autopart.records.layouts import Layout, Partition
from autopart.records.plan import SolverName
from autopart.records.problem import CLASSIC, CUSTOM, Problem
from autopart.search.closing import Closed
from autopart.search.incumbent import ROUNDING, Incumbent
from autopart.search.objectives import Path, searched_objective
from autopart.simulator.working_order import Program
from autopart.solvers import baselines, cuts_dp
from autopart.solvers.ilp import program as integer_program
from autopart.solvers.shared_ranks import leanest_path
from autopart.stopping.time_limit import passed

BASELINES: tuple[SolverName, ...] = ("uniform", "parameters")
"""Solvers that propose one partition without a search."""

ACTIONS = 20_000_000
"""Actions simulated, over all partitions, to close open layouts: a few seconds."""

AT_ONCE = 1024
"""Partitions whose policies are looked at before the time limit is read again."""

AT_HAND = 4
"""Layouts whose bounds and compiled schedules are kept for the next question."""

Made = TypeVar("Made")


class LayoutSearch:
    """The best decision so far, and everything that layouts add to it.

    Only decisions that take less than `beat` seconds are searched for.
    """

    def __init__(self, problem: Problem, solver: SolverName, beat: float = float("inf")) -> None:
        self.problem, self.deadline = problem, float("inf")
        self.solver: SolverName = solver
        self.objective = searched_objective(problem)
        self.best = Incumbent(self.objective, solver, beat)
        self.custom = CUSTOM in problem.demands.schedules
        self.looks_for_leanest = True
        """Whether a layout without a known plan gets its leanest partition; a start needs no plan."""
        self.best_of_layout: dict[Layout, Decision] = {}
        """The best decision on each layout with a named schedule, where own orders may follow."""
        self._bounds: dict[Layout, LayoutBounds] = {}
        self._programs: dict[Layout, Program] = {}
        self._simulated: dict[Layout, set[Path]] = {}
        """Partitions that closing has simulated."""
        self.least_of: dict[Layout, dict[Inside, float | None]] = {}
        """Seconds that no partition can beat, for each node of a layout's tree of assignments."""

    @functools.cached_property
    def cuts(self) -> Cuts:
        """The cuts of the graph; a search that ends with quick bounds needs none."""
        return all_cuts(self.problem.graph)

    def out_of_time(self) -> bool:
        """Whether the deadline has passed with something found or to beat.

        Baselines have no deadline.
        """
        if self.solver in BASELINES or self.best.value == float("inf"):
            return False
        return passed(self.deadline)

    def propose_without_bounds(self, layout: Layout, *, listed: bool) -> None:
        """Take the proposals for a layout that need no list of its partitions."""
        if self.solver in BASELINES:
            self._propose_baseline(layout)
        elif self.solver == "ilp" or not listed:
            self._propose_any_order(layout)

    def visit(self, layout: Layout) -> None:
        """Take proposals along the cuts for a layout, where its bounds leave better plans."""
        bounds = self.bounds_of(layout)
        path = cuts_dp.best_path(bounds.stages, self.cuts.nested)
        if path is not None:
            least = max(path.largest, bounds.whole)
            if self.is_promising(least):
                self._propose_along_cuts(layout, bounds, path.path, least)

    def is_promising(self, least: float) -> bool:
        """Whether a bound leaves better plans. An attained bound counts among equals too."""
        return self.objective.bounds.attained or least < self.best.value

    def least(self, bounds: LayoutBounds, cuts: Cuts | None = None) -> float | None:
        """The smallest possible largest bound over the stages of a partition; None without one."""
        path = cuts_dp.best_path(bounds.stages, (cuts or self.cuts).nested)
        return None if path is None else max(path.largest, bounds.whole)

    def close(self, layout: Layout, value: float, actions: int) -> Closed | None:
        """Simulate every partition of a layout that may take less than `value` seconds.

        None where that takes more than so many `actions`, or where time is up.
        """
        if passed(self.deadline):
            return None
        below = self.bounds_of(layout).paths_below(value)
        first = next(below, None)
        if first is None:
            return Closed(0, 0)
        if actions <= 0:
            return None
        program = self._program_of(layout)
        # Partitions that were simulated for a smaller value need no second time.
        known = self._simulated.setdefault(layout, set())
        most = actions // program.num_actions + len(known)
        paths = [first, *itertools.islice(below, most)]
        if len(paths) > most:
            return None
        fresh = [path for path in paths if path not in known]
        if fresh and chooses_by_rank(self.problem, layout):
            if not self._close_choices(layout, fresh, value):
                return None
        elif fresh:
            path, step = self._fastest(layout, fresh)
            if step < self.best.value:
                self.take_path(layout, path)
            known.update(fresh)
        return Closed(len(paths), len(fresh) * program.num_actions)

    def _close_choices(self, layout: Layout, paths: Sequence[Path], value: float) -> bool:
        """Simulate policies of partitions. Returns whether nothing takes less than the best value or `value`."""
        program, least = self._program_of(layout), value
        for start in range(0, len(paths), AT_ONCE):
            if passed(self.deadline):
                return False
            some = paths[start : start + AT_ONCE]
            found = fastest_choices(self.problem, layout, program, self.cuts, some, value)
            for path, one in zip(some, found, strict=True):
                if one.policies is not None and one.step < self.best.value:
                    self.take(layout, partition_of(self.cuts, path), "dp", one.policies)
                least = min(least, one.least)
        return least >= min(value, self.best.value * (1 - ROUNDING))

    def take_path(self, layout: Layout, path: Path) -> float:
        """`take` for the partition along a path."""
        return self.take(layout, partition_of(self.cuts, path), "dp")

    def take(
        self,
        layout: Layout,
        partition: Partition,
        by: SolverName,
        policies: tuple[StagePolicies, ...] | None = None,
    ) -> float:
        """Price a partition and offer it. Returns its value, infinite where it does not fit.

        `policies` replace the best ones by the rule.
        """
        decision = price(self.problem, layout, partition, given=policies)
        if not fits(self.problem, decision):
            return float("inf")
        self.best.offer(decision, by)
        if self.custom and self.best.is_better(decision, self.best_of_layout.get(layout)):
            self.best_of_layout[layout] = decision
        return self.objective.value(decision)

    def bounds_of(self, layout: Layout) -> LayoutBounds:
        """The bounds of a layout; the latest few are at hand."""
        of_layout = self.objective.bounds.of_layout
        return _at_hand(self._bounds, layout, lambda: of_layout(self.problem, layout, self.cuts))

    def _program_of(self, layout: Layout) -> Program:
        return _at_hand(self._programs, layout, lambda: compile_layout(layout))

    def _propose_baseline(self, layout: Layout) -> None:
        problem, num_stages = self.problem, len(layout.stage_ranks)
        if self.solver == "uniform":
            partition = baselines.uniform_layers(len(problem.graph.layers), num_stages)
        else:
            partition = baselines.balanced_parameters(self.cuts, num_stages)
        # The rules know no pins, so their split may break some.
        if not partition_keeps_pins(partition, problem.graph, problem.demands):
            return
        if may_beat(self.problem, layout, partition, self.best.value * (1 + ROUNDING)):
            self.take(layout, partition, self.solver)

    def _propose_any_order(self, layout: Layout) -> None:
        """Take proposals along the graph's own order, then the integer program's."""
        alone = self.solver == "ilp"
        paths = [] if alone else self.objective.proposals(layout, self.cuts)
        for path in paths:
            self.take_path(layout, path)
        # Orders of a plan's own follow later. Beside them, schedules are too many for a program each.
        too_many = self.custom and not alone and layout.schedule not in CLASSIC
        if layout.schedule == CUSTOM or too_many:
            return
        if self.solver != "dp" and (len(layout.stage_ranks) > 1 or alone):
            first = partition_of(self.cuts, paths[0]) if paths else None
            if found := integer_program.solve(self.problem, layout, first, self.deadline):
                self.take(layout, found, "ilp")

    def _propose_along_cuts(
        self, layout: Layout, bounds: LayoutBounds, by_bounds: Path, least: float
    ) -> None:
        """Take the path whose largest bound is smallest, or a better one where it misses that."""
        value = self.take_path(layout, by_bounds)
        together = fits_together(self.problem, layout)
        if value == self.best.value == float("inf") and together and self.looks_for_leanest:
            # Each stage fits alone, but not all on a rank together. This path fits if any does.
            by_bounds = leanest_path(self.problem, layout, self.cuts) or by_bounds
            value = self.take_path(layout, by_bounds)
        if self.objective.bounds.attained or value <= least * (1 + ROUNDING):
            return
        self.descend(
            layout, [by_bounds, *self.objective.proposals(layout, self.cuts)], self._neighbours
        )

    def descend(
        self,
        layout: Layout,
        paths: Sequence[Path],
        neighbours: Callable[[Path], Iterator[Path]],
    ) -> None:
        """Price the best path that small moves reach from the fastest of some, where it may be the best."""
        bounds = self.bounds_of(layout)
        # Step 1: the fastest path.
        here, step = self._fastest(layout, paths)
        # Step 2: go to the fastest neighbour, as long as bounds allow a shorter step.
        while not passed(self.deadline):
            near = [path for path in neighbours(here) if _largest(bounds.stages, path) < step]
            if not near:
                break
            best, faster = self._fastest(layout, near)
            if faster >= step * (1 - ROUNDING):
                break
            here, step = best, faster
        if self.custom or step <= self.best.value * (1 + TOLERANCE):
            self.take_path(layout, here)
        self._take_fastest_choice(layout, here, step)

    def _take_fastest_choice(self, layout: Layout, path: Path, step: float) -> None:
        """Take other policies than the rule's for a path, where they are faster."""
        if not chooses_by_rank(self.problem, layout) or passed(self.deadline):
            return
        program = self._program_of(layout)
        (one,) = fastest_choices(self.problem, layout, program, self.cuts, [path], step)
        if one.policies is not None and one.step < step * (1 - ROUNDING):
            self.take(layout, partition_of(self.cuts, path), "dp", one.policies)

    def _neighbours(self, path: Path) -> Iterator[Path]:
        """Paths in which one cut has moved by one layer."""
        nested, sizes = self.cuts.nested, self.cuts.ahead.sum(axis=1)
        for at in range(1, len(path) - 1):
            between = nested[path[at - 1]] & nested[:, path[at + 1]]
            near = np.abs(sizes - sizes[path[at]]) <= 1
            for other in np.flatnonzero(between & near):
                if other != path[at]:
                    yield (*path[:at], int(other), *path[at + 1 :])

    def _fastest(self, layout: Layout, paths: Sequence[Path]) -> tuple[Path, float]:
        """The path with the shortest simulated step, and that step."""
        steps = price_paths(self.problem, layout, self._program_of(layout), self.cuts, paths)
        at = int(np.argmin(steps))
        return paths[at], float(steps[at])


def _at_hand(kept: dict[Layout, Made], layout: Layout, make: Callable[[], Made]) -> Made:
    """The entry of a layout.

    It is made, and takes the place of the oldest one, where there is none.
    """
    if layout not in kept:
        if len(kept) == AT_HAND:
            del kept[next(iter(kept))]
        kept[layout] = make()
    return kept[layout]


def _largest(bounds: Sequence[npt.NDArray[np.float64]], path: Path) -> float:
    """The largest bound of the stages along a path."""
    stages = zip(bounds, path, path[1:], strict=False)
    return max(float(bound[i, j]) for bound, i, j in stages)
