"""Branch and bound on the simulated step: the fastest decision, and a value that none can beat.

Shapes (stages, replicas) are visited by their quick bounds. In each layout of a shape (its ranks and
its schedule) the chain solver proposes partitions, among them the one whose largest stage bound is
smallest, and the cuts of the best are moved by a layer while that makes the simulated step faster.
What is left open are the layouts whose smallest bound lies below the best step. There every partition
whose stages all have bounds below a value is simulated, for values that rise from the bound towards
the best step, until the layout is closed or the budget is spent. The lower bound is the best step,
or the smallest value up to which some layout is not yet closed.

A layer graph with too many cuts to list them has no such list of all partitions: there the chain
solver's proposals along the graph's own order and the integer program's are taken, and the lower
bound is that of the shapes.

Where orders of a plan's own are allowed, the named schedules are the start: the fastest decisions of a
few placements have their orders optimized (solvers/orders). The lower bound is then the smallest that
holds for every order on some placement, and nothing is listed.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from autopart.cuts import MOST_CUTS, Cuts, all_cuts, list_all, partition_of
from autopart.errors import InfeasibleError
from autopart.graph import is_chain
from autopart.layout_bounds import LayoutBounds, layout_bounds, proves, quick_bounds
from autopart.layouts import Layout, StageRanks, alike, layouts, shapes
from autopart.order_bounds import least_step
from autopart.plan import OrderSource
from autopart.pricing import (
    Decision,
    compile_layout,
    fits,
    may_beat,
    most_bytes,
    price,
    price_paths,
)
from autopart.problem import CLASSIC, CUSTOM, Problem
from autopart.simulator import Program
from autopart.solvers import chain, ilp, parameters, probe, uniform
from autopart.solvers.layout_chain import chain_of
from autopart.solvers.orders import order_problem, orders_of_layout
from autopart.stage_load import Number, Partition
from autopart.ways import leaves_choice

SolverName = Literal["auto", "dp", "ilp", "uniform", "parameters"]
SOLVERS: tuple[SolverName, ...] = ("auto", "dp", "ilp", "uniform", "parameters")

ACTIONS = 20_000_000
"""Actions simulated, over all partitions, to close what the bounds leave open: a few seconds."""

ROUNDING = 1e-12
"""Relative difference of two step times that add the same numbers up in different orders."""

SOME_ACTIONS, MORE_ACTIONS = 200_000, 1_000_000
"""Actions simulated or listed to optimize the orders of one decision: a second, and some seconds."""

PLACEMENTS = 6
"""Placements whose fastest decision has its orders optimized."""

BOUNDS_AT_HAND = 4
"""Layouts whose bounds are kept for the next question."""

STEPS_TO_BEST = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Values between a layout's bound and the best step at which the lower bound is raised."""


class Outcome(NamedTuple):
    """The fastest decision found, by whom, and the lower bound of the problem."""

    best: Decision | None
    solver: SolverName
    lower_bound: float
    simulated: int
    """Partitions with all stage bounds below `lower_bound`: those that a check must simulate."""


def search(
    problem: Problem, solver: SolverName, deadline: float, beat: float = float("inf")
) -> Outcome:
    """The fastest decision of a problem; None where the solver finds nothing that fits.

    What does not take less than `beat` seconds is of no interest: it may be missed, and the lower
    bound goes no further. It is infinite where nothing fits, and that is proven. `deadline` is a reading of `time.perf_counter()`; what is open then lowers the bound.
    """
    return LayoutSearch(problem, solver, deadline, beat).run()


class Open(NamedTuple):
    """A layout whose smallest bound lies below the best step."""

    bound: float
    layout: Layout


class LayoutSearch:
    """The best decision so far, and what layouts add to it."""

    def __init__(
        self, problem: Problem, solver: SolverName, deadline: float, beat: float = float("inf")
    ) -> None:
        self.problem, self.deadline, self.beat = problem, deadline, beat
        self.solver: SolverName = solver
        self.by: SolverName = solver
        self.cuts: Cuts = all_cuts(problem.graph)
        self.best: Decision | None = None
        self.unvisited = float("inf")
        """The smallest quick bound of the shapes for which there was no time."""
        self.custom = CUSTOM in problem.demands.schedules
        self.bounds: dict[Layout, LayoutBounds] = {}
        self.kept: dict[Layout, Decision] = {}
        """The best decision of each layout with a named schedule, where orders may follow it."""

    def run(self) -> Outcome:
        """Visit every shape, and prove what is best."""
        self._start_with_classic()
        quick = quick_bounds(self.problem, shapes(self.problem))
        order = sorted((bound, shape) for shape, bound in quick.items() if bound is not None)
        open_layouts: list[Open] = []
        for bound, shape in order:
            if bound >= self.step_time:
                break
            if self._out_of_time():
                self.unvisited = bound
                break
            for layout in layouts(self.problem, *shape):
                open_layouts += self.visit(layout, bound)
        if self.custom:
            self._optimize_orders()
        return self._prove(sorted(open_layouts, key=lambda place: place.bound))

    def _start_with_classic(self) -> None:
        """Where more schedules are allowed, the best plan of the classic ones among them is the first to
        beat, with half the time."""
        demands = self.problem.demands
        classic = tuple(name for name in demands.schedules if name in CLASSIC)
        if len(classic) == len(demands.schedules) or not classic:
            return
        now = time.perf_counter()
        fewer = msgspec.structs.replace(demands, schedules=classic)
        start = LayoutSearch(
            msgspec.structs.replace(self.problem, demands=fewer),
            self.solver,
            now + (self.deadline - now) / 2,
            self.beat,
        )
        try:
            start.run()
        except InfeasibleError:
            return
        if start.best is not None:
            self.best, self.by = start.best, start.by
            self.kept[start.best.layout] = start.best

    def _out_of_time(self) -> bool:
        """Whether the deadline has passed with something found or to beat; the baselines take what they take."""
        exact = self.solver not in ("uniform", "parameters")
        return exact and self.step_time < float("inf") and time.perf_counter() > self.deadline

    @property
    def step_time(self) -> float:
        """Seconds of the best decision so far, or those to beat."""
        return self.beat if self.best is None else min(self.beat, self.best.prediction.step_time)

    def visit(self, layout: Layout, quick: float) -> list[Open]:
        """Try the proposals for a layout; it stays open where its bound allows a faster step. Where
        orders of a plan's own are allowed, what they leave open on its placement says that."""
        listed = list_all(self.cuts, len(layout.stage_ranks))
        named = layout.schedule != CUSTOM
        if named and self.solver in ("uniform", "parameters"):
            partition = self._baseline(len(layout.stage_ranks))
            if may_beat(self.problem, layout, partition, self.step_time):
                self._take(layout, partition, self.solver)
        elif named and (self.solver == "ilp" or not listed):
            self._propose_any_order(layout)
        if not listed:
            return [Open(quick, layout)]
        bounds = self._bounds(layout)
        path = chain.best_path(bounds.stages, self.cuts.nested)
        if path is None:
            return []
        least = max(path.largest, bounds.whole)
        if named and self.solver in ("auto", "dp") and least < self.step_time:
            self._propose_along_cuts(layout, bounds, path.path, least)
        return [Open(least, layout)] if proves(self.problem, layout) else []

    def _baseline(self, num_stages: int) -> Partition:
        if self.solver == "uniform":
            return uniform.solve(len(self.problem.graph.layers), num_stages)
        return parameters.solve(self.cuts, num_stages)

    def _propose_along_cuts(
        self, layout: Layout, bounds: LayoutBounds, by_bounds: tuple[int, ...], least: float
    ) -> None:
        """The path of the smallest bound, which is the best where it attains it; else the chain
        solver's paths, and the best of all with its cuts moved while that helps."""
        if self.take_path(layout, by_bounds) <= least * (1 + ROUNDING):
            return
        program = compile_layout(layout)
        paths = [by_bounds, *self._proposals(layout)]
        here, step = self._fastest(layout, program, paths)
        while time.perf_counter() < self.deadline:
            near = [path for path in self._neighbours(here) if _largest(bounds.stages, path) < step]
            if not near:
                break
            best, faster = self._fastest(layout, program, near)
            if faster >= step * (1 - ROUNDING):
                break
            here, step = best, faster
        self.take_path(layout, here)

    def _proposals(self, layout: Layout) -> list[tuple[int, ...]]:
        """The chain solver's paths; on a long chain, where its matrices take seconds, the probe's."""
        demands, cluster = self.problem.demands, self.problem.cluster
        pinned = demands.pins or demands.same_stage or demands.different_stage
        pinned = pinned or leaves_choice(demands)
        long = len(self.cuts.nested) > MOST_CUTS and is_chain(self.problem.graph)
        if not long or pinned or cluster.gpus or not alike(layout):
            return chain.solve(self.problem, layout, self.cuts)
        found = [
            probe.solve(*chain_of(self.problem, layout, self.cuts.loads, share))
            for share in chain.SEND_SHARES
        ]
        return [one.cuts for one in found if one is not None]

    def _fastest(
        self, layout: Layout, program: Program, paths: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], float]:
        steps = price_paths(self.problem, layout, program, self.cuts, paths)
        at = int(np.argmin(steps))
        return paths[at], float(steps[at])

    def take_fastest(
        self, layout: Layout, program: Program, paths: Sequence[tuple[int, ...]]
    ) -> None:
        """Simulate paths of a layout, and keep the fastest where it is the best so far."""
        path, step = self._fastest(layout, program, paths)
        if step < self.step_time:
            self.take_path(layout, path)

    def take_path(self, layout: Layout, path: tuple[int, ...]) -> float:
        """`_take` of the partition between the cuts of a path."""
        return self._take(layout, partition_of(self.cuts, path), "dp")

    def _propose_any_order(self, layout: Layout) -> None:
        paths = [] if self.solver == "ilp" else chain.solve(self.problem, layout, self.cuts)
        for path in paths:
            self.take_path(layout, path)
        if layout.schedule not in CLASSIC:
            return
        if self.solver != "dp" and (len(layout.stage_ranks) > 1 or self.solver == "ilp"):
            first = partition_of(self.cuts, paths[0]) if paths else None
            found = ilp.solve(self.problem, layout, first, self.deadline)
            if found is not None:
                self._take(layout, found, "ilp")

    def _take(self, layout: Layout, partition: Partition, by: SolverName) -> float:
        """Price a partition and keep it where it is the best; returns its step time."""
        decision = price(self.problem, layout, partition)
        if not fits(self.problem, decision):
            return float("inf")
        if _better(decision, self.best):
            self.best, self.by = decision, by
        if self.custom and _better(decision, self.kept.get(layout)):
            self.kept[layout] = decision
        return decision.prediction.step_time

    def _optimize_orders(self) -> None:
        """Orders of their own for the fastest decisions, one of each placement; then with more effort
        for that whose own orders are the fastest."""
        fastest: dict[StageRanks, Decision] = {}
        for decision in sorted(self.kept.values(), key=lambda found: found.prediction.step_time):
            fastest.setdefault(decision.layout.stage_ranks, decision)
        tried: dict[float, Decision] = {}
        for decision in list(fastest.values())[:PLACEMENTS]:
            if self._may_gain(decision):
                tried[self._take_own_orders(decision, SOME_ACTIONS)] = decision
        if tried and self._may_gain(tried[min(tried)]):
            self._take_own_orders(tried[min(tried)], MORE_ACTIONS)

    def _may_gain(self, decision: Decision) -> bool:
        """Whether there is time, and other orders of a decision may be faster than the best."""
        layout = decision.layout
        if self._out_of_time() or len(layout.stage_ranks) == 1:
            return False
        task = order_problem(self.problem, layout, decision.partition, split=True)
        return least_step(task) < self.step_time * (1 - ROUNDING)

    def _take_own_orders(self, decision: Decision, actions: int) -> float:
        """Optimize the orders of a decision and keep them where they are the best."""
        own = self._with_own_orders(decision, actions)
        if fits(self.problem, own) and _better(own, self.best):
            self.best = own
        return own.prediction.step_time

    def _with_own_orders(self, decision: Decision, actions: int) -> Decision:
        layout, partition = decision.layout, decision.partition
        found = orders_of_layout(
            self.problem,
            layout,
            partition,
            split=True,
            deadline=self.deadline,
            actions=actions,
        )
        if found.name != "auto":
            named = msgspec.structs.replace(layout, schedule=found.name)
            return price(self.problem, named, partition)
        custom = msgspec.structs.replace(layout, schedule=CUSTOM)
        source = OrderSource(method=found.origin, step_time_without_cap=found.step_time_without_cap)
        return price(self.problem, custom, partition, found.schedule)._replace(order_source=source)

    def _neighbours(self, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Paths in which one cut has moved by one layer."""
        nested, sizes = self.cuts.nested, self.cuts.ahead.sum(axis=1)
        for at in range(1, len(path) - 1):
            between = nested[path[at - 1]] & nested[:, path[at + 1]]
            near = np.abs(sizes - sizes[path[at]]) <= 1
            for other in np.flatnonzero(between & near):
                if other != path[at]:
                    yield (*path[:at], int(other), *path[at + 1 :])

    def _prove(self, open_layouts: Sequence[Open]) -> Outcome:
        left = ACTIONS if self.solver in ("auto", "dp") and not self.custom else 0
        proven = min(self.step_time, self.unvisited)
        for place in open_layouts:
            if place.bound < min(proven, self.step_time):
                value, spent = self.close(place, left)
                left -= spent
                proven = min(proven, value)
        proven = min(proven, self.step_time)
        simulated = sum(
            sum(1 for _ in self.below(place.layout, proven))
            for place in open_layouts
            if place.bound < proven and list_all(self.cuts, len(place.layout.stage_ranks))
        )
        return Outcome(self.best, self.by, proven, simulated)

    def close(self, place: Open, budget: int) -> tuple[float, int]:
        """Simulate what a layout may hold below the best step; returns the value up to which
        nothing is faster, and how many actions were simulated."""
        proven, spent = place.bound, 0
        if not budget or not list_all(self.cuts, len(place.layout.stage_ranks)):
            return proven, spent
        program = compile_layout(place.layout)
        for share in STEPS_TO_BEST if self.step_time < float("inf") else ():
            aim = place.bound + share * (self.step_time - place.bound)
            most = (budget - spent) // program.num_actions
            below = list(itertools.islice(self.below(place.layout, aim), most + 1))
            if len(below) > most or time.perf_counter() > self.deadline:
                return proven, spent
            if below:
                self.take_fastest(place.layout, program, below)
            spent += len(below) * program.num_actions
            proven = min(aim, self.step_time)
        return proven, spent

    def below(self, layout: Layout, value: float) -> Iterator[tuple[int, ...]]:
        """The paths that the bounds leave open below `value`."""
        return self._bounds(layout).paths_below(value)

    def _bounds(self, layout: Layout) -> LayoutBounds:
        """The bounds of a layout; those of the last few are at hand."""
        if layout not in self.bounds:
            if len(self.bounds) == BOUNDS_AT_HAND:
                del self.bounds[next(iter(self.bounds))]
            self.bounds[layout] = layout_bounds(self.problem, layout, self.cuts)
        return self.bounds[layout]


def _better(decision: Decision, best: Decision | None) -> bool:
    """Faster, or as fast (but for the order in which floats were added up) with fewer bytes."""
    if best is None:
        return True
    step, least = decision.prediction.step_time, best.prediction.step_time
    if abs(step - least) <= ROUNDING * least:
        return most_bytes(decision) < most_bytes(best)
    return step < least


def _largest(bounds: Sequence[Number], path: Sequence[int]) -> float:
    stages = zip(bounds, path, path[1:], strict=False)
    return max(float(bound[i, j]) for bound, i, j in stages)
