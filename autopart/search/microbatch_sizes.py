"""The search over several microbatch sizes: one problem per size, and one incumbent for all.

All sizes go through the phases of their searches side by side (autopart/search/phases.py). So each
size gets a quick pass before any gets a deep one. In a phase the size with the best value so far
comes first. Where none has a value, it is the size that promises most. The best value prunes
the shapes in all other sizes. A size whose quick bounds all reach that value is not searched.

Each size has its own lower bound, which no plan with that size can beat. The smallest one is the
lower bound over all sizes.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from autopart.errors import InfeasibleError
from autopart.pricing import minimised
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.incumbent import Outcome
from autopart.search.many_choices import ManySearches
from autopart.search.phases import PhasedSearch, run_phase
from autopart.search.stage_degrees import DegreesSearch
from autopart.search.uneven_replicas import UnevenSearch
from autopart.stage_degrees.problem import DegreesProblem
from autopart.stopping.time_limit import OutOfTime, limited

NOTHING = float("inf")
"""The lower bound for a problem that has no plan."""

SHARE_OF_BEST_SIZE = 0.75
"""Part of a phase's time for the most promising size, where others follow."""


MOST_SIDE_BY_SIDE = 24
"""Problems that are searched side by side; more of them are searched one by one, the least bound first."""


class SizeOutcomes(NamedTuple):
    """The outcomes at all sizes."""

    outcomes: tuple[Outcome, ...]
    """The outcome at each size, in the order of the problems."""
    best: int | None
    """The position of the size with the best plan; None where no size has one."""
    progress: str
    """The part of the space that was searched, in words."""

    @property
    def certain(self) -> bool:
        """Whether certainly no plan exists, where none was found."""
        return all(outcome.lower_bound == NOTHING for outcome in self.outcomes)


AnyProblem = Problem | DegreesProblem
"""A problem whose stages have one tensor degree, or each its own."""


def search_sizes(
    problems: Sequence[AnyProblem], solver: SolverName, deadline: float, beat: float = NOTHING
) -> SizeOutcomes:
    """Search problems that differ in their microbatch sizes or tensor degrees.

    `deadline` is a reading of `time.perf_counter()`. Only plans that take less than `beat` seconds are
    searched for, and no lower bound goes beyond them. Raises InfeasibleError where the demands leave no
    shape at any size.
    """
    if len(problems) > MOST_SIDE_BY_SIDE and _are_equal_in_kind(problems):
        return _search_many(problems, solver, deadline, beat)
    with limited(deadline):
        try:
            searches = _searches(problems, solver)
        except OutOfTime:
            unknown = Outcome(None, solver, 0.0, 0)
            return SizeOutcomes((unknown,) * len(problems), None, "no shape was looked at")
        able = [search for search in searches if not isinstance(search, InfeasibleError)]
        if not able:
            raise next(search for search in searches if isinstance(search, InfeasibleError))
        for search in able:
            search.best.beat = beat
        for at in range(len(able[0].phases)):
            _run_phase_at_all_sizes(able, at, deadline, beat)
        outcomes = tuple(
            Outcome(None, solver, NOTHING, 0)
            if isinstance(search, InfeasibleError)
            else search.outcome()
            for search in searches
        )
    return _best_of(problems, outcomes, " and ".join(search.progress for search in able))


def _best_of(
    problems: Sequence[AnyProblem], outcomes: Sequence[Outcome], progress: str
) -> SizeOutcomes:
    values = [value_of(problem, one) for problem, one in zip(problems, outcomes, strict=True)]
    best = min(range(len(values)), key=values.__getitem__)
    return SizeOutcomes(tuple(outcomes), best if values[best] < NOTHING else None, progress)


def _are_equal_in_kind(problems: Sequence[AnyProblem]) -> TypeGuard[Sequence[Problem]]:
    """Whether all problems have equal replicas, and one tensor degree for all stages."""
    return all(isinstance(one, Problem) and not one.demands.replicas_per_stage for one in problems)


def _search_many(
    problems: Sequence[Problem], solver: SolverName, deadline: float, beat: float
) -> SizeOutcomes:
    """`search_sizes` where the problems are too many to be searched side by side."""
    with limited(deadline):
        many = ManySearches(problems, solver, beat)
        many.run(deadline)
        if len(many.errors) == len(problems):
            raise many.errors[0]
        return _best_of(problems, many.outcomes(), many.progress)


def _searches(
    problems: Sequence[AnyProblem], solver: SolverName
) -> list[PhasedSearch | InfeasibleError]:
    """A search for each problem; the error where its demands leave no shape."""
    found: list[PhasedSearch | InfeasibleError] = []
    for problem in problems:
        try:
            if isinstance(problem, DegreesProblem):
                found.append(DegreesSearch(problem, solver))
                continue
            uneven = problem.demands.replicas_per_stage
            found.append((UnevenSearch if uneven else BranchAndBound)(problem, solver))
        except InfeasibleError as error:
            found.append(error)
    return found


def _run_phase_at_all_sizes(
    searches: Sequence[PhasedSearch], at: int, deadline: float, beat: float
) -> None:
    """Run one phase for each size that can still beat the best value, and `beat` seconds."""
    left = sorted(searches, key=lambda search: (search.best.own_value, search.promise))
    while left:
        # Step 1: the most promising size, which must beat all others.
        search = left.pop(0)
        others = [s.best.own_value for s in searches if s is not search]
        search.best.beat = min([beat, *others])
        if search.quick_bound >= search.best.value:
            continue
        # Step 2: its part of the time. All sizes share the first phase evenly.
        phase = search.phases[at]
        part = SHARE_OF_BEST_SIZE if search.best.own_value < NOTHING else 1 / (len(left) + 1)
        run_phase(phase, phase.share * (part if left else 1.0), deadline)


def value_of(problem: AnyProblem, outcome: Outcome) -> float:
    """Seconds that the problem minimises, for the best decision found.

    Infinite where there is none.
    """
    if outcome.best is None:
        return NOTHING
    whole = problem.of_gpus if isinstance(problem, DegreesProblem) else problem
    return minimised(whole, outcome.best.prediction, outcome.best.layout.stage_ranks)
