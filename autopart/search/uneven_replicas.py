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
import itertools
import math
from collections.abc import Iterator, Sequence

import msgspec

from autopart.bounds.objectives import TOLERANCE
from autopart.bounds.open_replicas import (
    MOST_WAITING,
    Counts,
    all_open_counts,
    first_open,
    is_open,
    least_step_of_any_cuts,
    lower_bound,
    open_counts,
    raised_by_joining,
)
from autopart.bounds.rank_assignments import fastest_assigned, takes_gpus_in_order
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import keeps_pins
from autopart.cost.links import link_across
from autopart.errors import InfeasibleError
from autopart.pricing import fits, price
from autopart.records.cluster import Link, num_gpus
from autopart.records.layouts import Layout, check_num_stages, layouts_of, windows
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.search import every_assignment
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.incumbent import ROUNDING, Incumbent, Outcome
from autopart.search.layout_search import ACTIONS, Closed, LayoutSearch
from autopart.search.likely_assignments import likely_layouts
from autopart.search.phases import (
    SHARE_OF_START,
    Phase,
    run_phase,
    run_phases,
    with_fewer_choices,
)
from autopart.solvers import uneven_replicas
from autopart.stopping.time_limit import (
    GRACE,
    OutOfTime,
    deadline_in,
    limited,
    passed,
    time_left,
)

STEPS_TO_BEST = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
"""Values between the bound and the best step at which the lower bound is raised."""

SHARE_OF_SMALLER = 0.4
"""The part of the time for a smaller problem, where there are many GPUs."""

SHARE_OF_JOINING = 0.5
"""The part of the proposals' time in which the lower bound is raised."""

SHARE_OF_MOVING = 0.5
"""The part of the time in which replicas are moved; the rest goes to closing."""

FEW_GPUS = 64
"""The most GPUs for which no smaller problem is searched."""

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
        self.quick_bound = least_step_of_any_cuts(problem)
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
        times = _times_smaller(self.problem)
        if times == 1 or not self.cuts.complete:
            return
        self.found.deadline = until
        smaller = UnevenSearch(_divided(self.problem, times), self.found.solver)
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
            lists = self._open_counts(aim)
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

        Bounds come first: infinite where they leave nothing below the best step.
        """
        if counts not in self.apart:
            step, cluster = math.inf, self.problem.cluster
            if self.best.decision is None or takes_gpus_in_order(self.problem):
                return 0.0
            if cluster.num_nodes == 1:
                return 0.0
            for layout in layouts_of(self.problem, counts):
                problem, alone = fastest_assigned(self.problem, layout)
                found = LayoutSearch(problem, self.found.solver)
                found.deadline = self.found.deadline
                found.visit(alone)
                step = min(step, found.best.own_value)
            self.apart[counts] = step
        return self.apart[counts]

    def _move_replicas(self) -> None:
        """Visit all neighbours of the best replicas, then of the new best, while that helps."""
        moved = True
        while moved:
            moved = False
            assert self.best.decision is not None
            here = tuple(len(ranks) for ranks in self.best.decision.layout.stage_ranks)
            for counts in dict.fromkeys(self._neighbours(here)):
                if passed(self.found.deadline):
                    return
                if is_open(self.bounds, counts, self.best.value):
                    moved = self._visit(counts) or moved

    def _neighbours(self, counts: Counts) -> Iterator[Counts]:
        """Replicas after one GPU was moved, added or left out, two stages joined, or one split."""
        free = num_gpus(self.problem.cluster) - sum(counts)
        yield from self._moved(counts, free)
        if self.problem.demands.num_stages is None:
            for at in range(len(counts) - 1):
                joined = min(self.problem.num_microbatches, counts[at] + counts[at + 1])
                yield (*counts[:at], joined, *counts[at + 2 :])
            if len(counts) < len(self.problem.graph.layers):
                yield from _split(counts, free)

    def _moved(self, counts: Counts, free: int) -> Iterator[Counts]:
        """Replicas after one GPU went from a stage, or from the `free` ones, to another place."""
        most = self.problem.num_microbatches
        for at, to in itertools.permutations((*range(len(counts)), None), 2):
            changed = list(counts)
            if at is not None:
                changed[at] -= 1
            if to is not None:
                changed[to] += 1
            if min(changed) >= 1 and max(changed) <= most and (at is not None or free):
                yield tuple(changed)

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
        raised = self.found.raise_bound(
            self.proven,
            STEPS_TO_BEST,
            self._close_below,
            ACTIONS if self.found.solver in ("auto", "dp") else 0,
        )
        # Bounds leave nothing open below their own value.
        simulated = raised.simulated
        if simulated is None:
            simulated = self._count_below(raised.proven)
        self.proven, self.simulated = raised.proven, simulated

    def _count_below(self, value: float) -> int:
        """Partitions that a check must simulate to prove a value."""
        return sum(
            every_assignment.count_below(self.found, layout, value)
            for own in self._open_counts(value) or []
            for layout in layouts_of(self.problem, own)
        )

    def _open_counts(self, value: float) -> list[Counts] | None:
        """The replicas that bounds leave open below `value` seconds; None where they are too many.

        A check lists none where the bound of any cuts reaches the value, by a rounding too.
        """
        if value <= self.quick_bound * (1 + TOLERANCE):
            return []
        return open_counts(self.bounds, value)

    def _close_below(self, value: float, actions: int) -> Closed | None:
        """Simulate every partition that may take less than `value` seconds.

        None where they are too many.
        """
        counts = self._open_counts(value)
        if counts is None:
            return None
        partitions = spent = 0
        for layout in itertools.chain(*(layouts_of(self.problem, own) for own in counts)):
            closed = every_assignment.close(self.found, layout, value, actions - spent)
            if closed is None:
                return None
            partitions += closed.simulated
            spent += closed.actions
        # What is closed stays so where time ends before the next value is.
        if value <= self.best.value:
            self.proven, self.simulated = value, partitions
        return Closed(partitions, spent)


def _times_smaller(problem: Problem) -> int:
    """By how many times fewer GPUs and microbatches a smaller problem has; 1 where there is none."""
    cluster, gpus = problem.cluster, num_gpus(problem.cluster)
    if cluster.gpus or gpus <= FEW_GPUS:
        return 1
    parts = cluster.num_nodes if cluster.num_nodes > 1 else cluster.gpus_per_node
    common = math.gcd(parts, problem.num_microbatches)
    fitting = [n for n in range(2, common + 1) if common % n == 0 and gpus // n <= FEW_GPUS]
    return min(fitting, default=1)


def _divided(problem: Problem, times: int) -> Problem:
    """The problem with so many times fewer GPUs, and microbatches."""
    cluster = problem.cluster
    field = "num_nodes" if cluster.num_nodes > 1 else "gpus_per_node"
    fewer = {field: getattr(cluster, field) // times}
    if field == "gpus_per_node" and cluster.host_memory_bytes is not None:
        fewer["host_memory_bytes"] = cluster.host_memory_bytes // times
    return msgspec.structs.replace(
        problem,
        cluster=msgspec.structs.replace(cluster, **fewer),
        num_microbatches=problem.num_microbatches // times,
    )


def _split(counts: Counts, free: int) -> Iterator[Counts]:
    """One stage in two, on its own ranks or with a free one beside them."""
    for at, count in enumerate(counts):
        for ahead in range(1, count):
            yield (*counts[:at], ahead, count - ahead, *counts[at + 1 :])
        if free:
            yield (*counts[:at], count, 1, *counts[at + 1 :])
            yield (*counts[:at], 1, count, *counts[at + 1 :])
