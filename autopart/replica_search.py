"""The search where each stage may have replicas of its own.

The best plan of equal replicas is the start. Further proposals come from the lower bound, which names
stages and replicas that attain it, from the smallest bottleneck (solvers/replicated_stages.py), and
from moving a GPU between stages, joining two stages or parting one while that makes the simulated step
faster; in each layout the cuts are those of the search of one layout. What the bound leaves open below
the best step is then listed, replicas by replicas and cut by cut, and simulated, as far as the budget
goes. The lower bound is the best step, or the smallest value up to which that list is complete.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from autopart.cluster import num_gpus
from autopart.errors import InfeasibleError
from autopart.layouts import Layout, layouts_of
from autopart.pricing import compile_layout
from autopart.problem import Problem
from autopart.replica_bounds import (
    MOST_COUNTS,
    ReplicaBounds,
    counts_below,
    first_below,
    least_value,
    value_in_any_order,
)
from autopart.search import ACTIONS, ROUNDING, LayoutSearch, Outcome, SolverName
from autopart.solvers import replicated_stages

STEPS_TO_BEST = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
"""Values between the bound and the best step at which the lower bound is raised."""

SHARE_OF_TIME = 0.5
"""The part of the time limit in which replicas are moved about; the rest goes to the proof."""


def search(problem: Problem, solver: SolverName, deadline: float) -> Outcome:
    """The fastest decision with replicas per stage; None where nothing fits.

    `deadline` is a reading of `time.perf_counter()`; what is open then lowers the bound.
    """
    return _ReplicaSearch(problem, solver, deadline).run()


class _ReplicaSearch:
    def __init__(self, problem: Problem, solver: SolverName, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.moving_until = time.perf_counter() + SHARE_OF_TIME * (deadline - time.perf_counter())
        self.layouts = LayoutSearch(problem, solver, deadline)
        self.cuts = self.layouts.cuts
        self.visited: set[tuple[int, ...]] = set()

    def run(self) -> Outcome:
        uniform = msgspec.structs.replace(self.problem.demands, replicas_per_stage=False)
        start = LayoutSearch(
            msgspec.structs.replace(self.problem, demands=uniform),
            self.layouts.solver,
            self.moving_until,
        )
        start.run()
        self.layouts.best, self.layouts.by = start.best, start.by
        if not self.cuts.complete:
            return self._outcome(value_in_any_order(self.problem), 0)
        bounds = ReplicaBounds(self.problem, self.cuts)
        self._propose(bounds)
        if self.layouts.best is None:
            return Outcome(None, self.layouts.solver, 0.0, 0)
        self._move_replicas()
        return self._prove(bounds)

    def _outcome(self, proven: float, simulated: int) -> Outcome:
        found = self.layouts
        proven = min(proven, found.step_time)
        return Outcome(found.best, found.by, proven, simulated)

    def _propose(self, bounds: ReplicaBounds) -> None:
        """Stages that fit, those that attain the bound, and those of the smallest bottleneck."""
        self._propose_below(bounds, math.inf)
        if self.layouts.best is None:
            return
        self._propose_below(bounds, least_value(bounds, self.layouts.step_time) * (1 + 1e-6))
        cluster = self.problem.cluster
        for link in dict.fromkeys((cluster.intra_node, cluster.inter_node)):
            self._propose_bottleneck(link)

    def _propose_below(self, bounds: ReplicaBounds, value: float) -> None:
        for path, counts in first_below(bounds, value):
            self._visit(counts)
            for layout in layouts_of(self.problem, counts):
                self.layouts.take_path(layout, path)

    def _propose_bottleneck(self, link: object) -> None:
        demanded = self.problem.demands.num_stages
        try:
            found = replicated_stages.solve(
                self.problem,
                self.cuts,
                link=link,  # pyright: ignore[reportArgumentType]
                time_limit=max(0.0, self.moving_until - time.perf_counter()) / 4,
            )
        except InfeasibleError:
            return
        if demanded in (None, len(found.replicas)):
            self._visit(found.replicas)

    def _visit(self, counts: Sequence[int]) -> bool:
        """Look at every layout of `counts` once; returns whether the best step became shorter."""
        before, counts = self.layouts.step_time, tuple(counts)
        if counts in self.visited:
            return False
        self.visited.add(counts)
        for layout in layouts_of(self.problem, counts):
            self.layouts.visit(layout, 0.0)
        return self.layouts.step_time < before * (1 - ROUNDING)

    def _move_replicas(self) -> None:
        """Steepest moves of replicas, from the best on, while the step becomes shorter."""
        moved = True
        while moved:
            moved = False
            assert self.layouts.best is not None
            here = tuple(len(ranks) for ranks in self.layouts.best.layout.stage_ranks)
            for counts in dict.fromkeys(self._neighbours(here)):
                if time.perf_counter() > self.moving_until:
                    return
                moved = self._visit(counts) or moved

    def _neighbours(self, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Replicas after one GPU was moved, added or left out, two stages joined or one parted."""
        free = num_gpus(self.problem.cluster) - sum(counts)
        yield from self._moved(counts, free)
        if self.problem.demands.num_stages is None:
            for at in range(len(counts) - 1):
                joined = min(self.problem.num_microbatches, counts[at] + counts[at + 1])
                yield (*counts[:at], joined, *counts[at + 2 :])
            if len(counts) < len(self.problem.graph.layers):
                yield from _parted(counts, free)

    def _moved(self, counts: tuple[int, ...], free: int) -> Iterator[tuple[int, ...]]:
        most = self.problem.num_microbatches
        for at, to in itertools.permutations((*range(len(counts)), None), 2):
            changed = list(counts)
            if at is not None:
                changed[at] -= 1
            if to is not None:
                changed[to] += 1
            if min(changed) >= 1 and max(changed) <= most and (at is not None or free):
                yield tuple(changed)

    def _prove(self, bounds: ReplicaBounds) -> Outcome:
        """Raise the lower bound from that of the bounds alone towards the best step."""
        least = proven = least_value(bounds, self.layouts.step_time)
        left = ACTIONS if self.layouts.solver in ("auto", "dp") else 0
        simulated = 0
        for share in STEPS_TO_BEST if proven < self.layouts.step_time else ():
            aim = least + share * (self.layouts.step_time - least)
            closed = self._close(bounds, aim, left)
            if closed is None:
                break
            proven, (simulated, spent) = min(aim, self.layouts.step_time), closed
            if proven < aim:
                simulated = self._count(bounds, proven)
            left -= spent
        return self._outcome(proven, simulated)

    def _close(self, bounds: ReplicaBounds, aim: float, budget: int) -> "_Closed | None":
        """Simulate whatever may take less than `aim`; None where that is too much."""
        simulated = spent = 0
        for layout in self._open_layouts(bounds, aim):
            if layout is None or time.perf_counter() > self.deadline:
                return None
            below = self.layouts.below(layout, aim)
            first = list(itertools.islice(below, 1))
            if not first:
                continue
            program = compile_layout(layout)
            most = (budget - spent) // program.num_actions
            paths = [*first, *itertools.islice(below, max(0, most))]
            if len(paths) > most:
                return None
            self.layouts.take_fastest(layout, program, paths)
            simulated += len(paths)
            spent += len(paths) * program.num_actions
        return _Closed(simulated, spent)

    def _open_layouts(self, bounds: ReplicaBounds, value: float) -> "Iterator[Layout | None]":
        """The layouts that may take less than `value`; None where they are too many."""
        counts = list(itertools.islice(counts_below(bounds, value), MOST_COUNTS + 1))
        if len(counts) > MOST_COUNTS:
            yield None
            return
        for own in counts:
            yield from layouts_of(self.problem, own)

    def _count(self, bounds: ReplicaBounds, value: float) -> int:
        return sum(
            sum(1 for _ in self.layouts.below(layout, value))
            for layout in self._open_layouts(bounds, value)
            if layout is not None
        )


def _parted(counts: tuple[int, ...], free: int) -> Iterator[tuple[int, ...]]:
    """One stage in two, on its own ranks or with a free one beside them."""
    for at, count in enumerate(counts):
        for ahead in range(1, count):
            yield (*counts[:at], ahead, count - ahead, *counts[at + 1 :])
        if free:
            yield (*counts[:at], count, 1, *counts[at + 1 :])
            yield (*counts[:at], 1, count, *counts[at + 1 :])


class _Closed(NamedTuple):
    """How much it took to close what lies below a value."""

    simulated: int
    spent: int
    """Actions simulated."""
