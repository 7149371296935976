"""The search where each stage may have its own number of replicas.

The best plan with equal replicas is the start. On many GPUs the replicas of a smaller problem come
next, with as many microbatches per GPU: each times the same number. Further proposals come from the
lower bound, which names stages and replicas that attain it, from the lists that bounds leave open,
and from the smallest bottleneck (autopart/solvers/uneven_replicas.py). Then the search moves a GPU
between stages, joins two stages or splits one, while that makes the simulated step shorter. In each
layout it looks for cuts as branch and bound does (autopart/search/layout_search.py), first on the
groups of ranks apart (autopart/bounds/rank_assignments.py): no assignment is faster there.

Bounds leave some partitions open below the best step. These are listed, replicas by replicas and
cut by cut, and simulated as far as the budget goes. The lower bound is the best step, or the
smallest value up to which that list is complete.
"""

import contextlib
import math
from collections.abc import Sequence

from autopart.bounds.open_replicas import (
    MOST_WAITING,
    Counts,
    all_open_counts,
    first_open,
    is_open,
    least_step_of_any_cuts,
    lower_bound,
    raised_by_joining,
)
from autopart.bounds.rank_assignments import takes_gpus_in_order
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import keeps_pins
from autopart.cost.links import link_across
from autopart.errors import InfeasibleError
from autopart.pricing import fits, price
from autopart.records.cluster import Link
from autopart.records.layouts import Layout, check_num_stages, layouts_of, windows
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.search import every_assignment
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.closing import Closed, raise_bound
from autopart.search.incumbent import ROUNDING, Incumbent, Outcome
from autopart.search.layout_search import ACTIONS, LayoutSearch
from autopart.search.likely_assignments import likely_layouts
from autopart.search.open_lists import OpenLists
from autopart.search.phases import SHARE_OF_START, Phase, run_phase, run_phases, with_fewer_choices
from autopart.search.replica_moves import neighbours
from autopart.search.smaller_problem import divided, times_smaller
from autopart.search.steps_apart import step_apart
from autopart.solvers import uneven_replicas
from autopart.stopping.time_limit import GRACE, OutOfTime, deadline_in, limited, passed, time_left

STEPS_TO_BEST = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
"""Values between the bound and the best step at which the lower bound is raised."""

SHARE_OF_SMALLER = 0.4
"""The part of the time for a smaller problem, where there are many GPUs."""

SHARE_OF_JOINING = 0.5
"""The part of the proposals' time in which the lower bound is raised."""

SHARE_OF_MOVING = 0.5
"""The part of the time in which replicas are moved; the rest goes to closing."""

MOST_SCALED = 5
"""Lists of the smaller problem that are scaled up."""

STEPS_TO_LISTS = (1 / 4, 1 / 2, 3 / 4, 1.0)
"""Values between the bound and the best step below which open lists are visited."""


class UnevenSearch:
    """The search for the fastest decision with replicas per stage.

    Raises InfeasibleError where more stages are demanded than there are layers or GPUs.
    """

    def __init__(self, problem: Problem, solver: SolverName, beat: float = math.inf) -> None:
        check_num_stages(problem)
        self.problem = problem
        self.found = LayoutSearch(problem, solver, beat)
        self.cuts, self.visited = self.found.cuts, set[Counts]()
        self.apart: dict[Counts, float] = {}
        """For lists of replicas, the shortest step found with their groups of ranks apart."""
        self.bounds = ReplicaBounds(problem, self.cuts)
        self.quick_bound = self.promise = least_step_of_any_cuts(problem)
        self.open = OpenLists(self.found, self.bounds, self.quick_bound)
        self.proven, self.simulated = self.quick_bound, 0
        """The lower bound so far, and the partitions that were simulated for it."""

    @property
    def best(self) -> Incumbent:
        """The best decision so far."""
        return self.found.best

    @property
    def phases(self) -> list[Phase]:
        """Equal replicas, scaled and moved ones, and the replicas that bounds leave open."""
        return [
            Phase(SHARE_OF_START, self._start_with_equal_replicas),
            Phase(SHARE_OF_SMALLER, self._scale_up),
            Phase(SHARE_OF_MOVING, self._propose),
            Phase(1.0, self._close),
        ]

    @property
    def progress(self) -> str:
        """The part of the space that was searched, in words."""
        return f"{len(self.visited)} lists of replicas were searched"

    def outcome(self) -> Outcome:
        """The best decision and the lower bound, from everything that is done so far."""
        proven = min(self.proven, self.best.value)
        simulated = self.simulated if proven == self.proven else 0
        return Outcome(self.best.decision, self.best.by, proven, simulated)

    def _start_with_equal_replicas(self, until: float) -> None:
        fewer = with_fewer_choices(self.problem)
        assert fewer is not None, "equal replicas are fewer choices"
        try:
            start = BranchAndBound(fewer, self.found.solver, self.best.value)
        except InfeasibleError:
            return
        run_phases(start, until)
        decision = start.best.decision
        if decision is not None and self._may_take(decision.layout):
            own = price(self.problem, decision.layout, decision.partition)
            if fits(self.problem, own):
                self.best.offer(own, start.best.by)

    def _may_take(self, layout: Layout) -> bool:
        """Whether the bound covers a layout's ranks: any, or a window where GPUs differ."""
        counts = [len(ranks) for ranks in layout.stage_ranks]
        in_order = takes_gpus_in_order(self.problem)
        return not in_order or layout.stage_ranks in windows(self.problem.cluster, counts)

    def _scale_up(self, until: float) -> None:
        """Visit the best replicas of a smaller problem, each times one number."""
        times = times_smaller(self.problem)
        if times == 1 or not self.cuts.complete:
            return
        self.found.deadline = until
        smaller = UnevenSearch(divided(self.problem, times), self.found.solver)
        for phase in smaller.phases[:-1]:
            run_phase(phase, phase.share, until - SHARE_OF_SMALLER * time_left(until))
        for counts in sorted(smaller.apart, key=smaller.apart.__getitem__)[:MOST_SCALED]:
            self._visit([times * count for count in counts])

    def _propose(self, until: float) -> None:
        """Visit stages that fit, that attain the bound, that bounds leave open or balance.

        Then move replicas.
        """
        self.found.deadline = until
        if not self.cuts.complete:
            return
        if self.best.decision is None:
            self._propose_below(math.inf)
        if self.best.decision is None:
            self._find_first()
        if self.best.decision is None:
            return
        self._raise_to_bounds(deadline_in(SHARE_OF_JOINING * time_left(until)))
        self._propose_below(self.proven * (1 + 1e-6))
        self._propose_open()
        cluster = self.problem.cluster
        for link in dict.fromkeys((cluster.intra_node, link_across(cluster))):
            self._propose_bottleneck(link)
        self._move_replicas()

    def _find_first(self) -> None:
        """Visit all replicas that bounds leave open, until some decision fits.

        Bounds ask for less memory than a decision needs: where GPUs differ, ranks may be passed
        over. So the first path that bounds leave open may not fit, though another one does.
        """
        for counts in all_open_counts(self.bounds, math.inf):
            self._visit(counts)
            if self.best.decision is not None:
                return
        # Nothing fits, whatever the replicas.
        self.proven = math.inf

    def _propose_below(self, value: float) -> None:
        """Visit the replicas that attain a bound; without pins, take the path itself too."""
        for path, counts in first_open(self.bounds, value):
            self._visit(counts)
            # Bounds do not ask for pins to numbered stages.
            if keeps_pins(self.cuts, self.problem.graph, self.problem.demands, path):
                for layout in layouts_of(self.problem, counts):
                    for one in likely_layouts(self.problem, layout, None):
                        self.found.take_path(one, path)

    def _propose_bottleneck(self, link: Link) -> None:
        demanded = self.problem.demands.num_stages
        try:
            found = uneven_replicas.solve(
                self.problem,
                self.cuts,
                link=link,
                time_limit=time_left(self.found.deadline) / 4,
            )
        except InfeasibleError:
            return
        if demanded in (None, len(found.replicas)):
            self._visit(found.replicas)

    def _propose_open(self) -> None:
        """Visit the lists that bounds leave open, those with the fastest steps on the best links first.

        The value rises from the lower bound to the best step, as long as lists are few.
        """
        for share in STEPS_TO_LISTS:
            aim = self.proven + share * (self.best.value - self.proven)
            if len(self.bounds.counts) > MOST_WAITING or passed(self.found.deadline):
                return
            lists = self.open.lists(aim)
            if lists is None:
                return
            for counts in lists:
                if passed(self.found.deadline):
                    break
                self._step_apart(counts)
            for counts in sorted(lists, key=lambda counts: self.apart.get(counts, math.inf)):
                self._visit(counts)

    def _visit(self, counts: Sequence[int]) -> bool:
        """Look at every layout of `counts` once; returns whether the best step became shorter."""
        before, counts = self.best.value, tuple(counts)
        if counts in self.visited:
            return False
        self.visited.add(counts)
        if self._step_apart(counts) < before:
            for layout in layouts_of(self.problem, counts):
                every_assignment.visit(self.found, layout, 0.0)
        return self.best.value < before * (1 - ROUNDING)

    def _step_apart(self, counts: Counts) -> float:
        """The shortest step found for `counts` with their groups of ranks apart, in seconds.

        0 where that says no more than the layout itself.
        """
        one_node = self.problem.cluster.num_nodes == 1
        if one_node or takes_gpus_in_order(self.problem) or self.best.decision is None:
            return 0.0
        if counts not in self.apart:
            self.apart[counts] = step_apart(self.found, layouts_of(self.problem, counts))
        return self.apart[counts]

    def _move_replicas(self) -> None:
        """Visit all neighbours of the best replicas, then of the new best, while that helps."""
        moved = True
        while moved:
            moved = False
            assert self.best.decision is not None
            here = tuple(len(ranks) for ranks in self.best.decision.layout.stage_ranks)
            for counts in dict.fromkeys(neighbours(self.problem, here)):
                if passed(self.found.deadline):
                    return
                if is_open(self.bounds, counts, self.best.value):
                    moved = self._visit(counts) or moved

    def _raise_to_bounds(self, until: float) -> None:
        """Raise the lower bound as far as bounds alone do."""
        # The values before time is up count.
        with limited(until - GRACE), contextlib.suppress(OutOfTime):
            self.proven = lower_bound(self.bounds, self.proven, self.best.value)
            for value in raised_by_joining(self.bounds, self.proven, self.best.value):
                self.proven = value

    def _close(self, until: float) -> None:
        """Raise the lower bound from the one that bounds alone give towards the best step."""
        self.found.deadline = until
        if self.best.decision is None or not self.cuts.complete:
            return
        self._raise_to_bounds(until)
        raised = raise_bound(
            self.found.best,
            self.proven,
            STEPS_TO_BEST,
            self._close_below,
            ACTIONS if self.found.solver in ("auto", "dp") else 0,
        )
        # Bounds leave nothing open below their own value.
        simulated = raised.simulated
        if simulated is None:
            simulated = self.open.count_below(raised.proven)
        self.proven, self.simulated = raised.proven, simulated

    def _close_below(self, value: float, actions: int) -> Closed | None:
        closed = self.open.close(value, actions)
        # What is closed stays so where time ends before the next value is.
        if closed is not None and value <= self.best.value:
            self.proven, self.simulated = value, closed.simulated
        return closed
