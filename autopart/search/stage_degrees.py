"""The search where each stage may have its own tensor degree.

Bounds come first (autopart/stage_degrees/bounds.py). For each schedule, number of replicas and number
of stages the plan with the smallest bound is priced, in the order of these bounds. The best of them
are improved: other degrees for one stage, degrees that change places, one stage more or less, each
with the cuts whose largest bound is smallest; and cuts that move by a few layers.

Then all plans that bounds leave open are priced in the order of their bounds
(autopart/stage_degrees/open.py), as far as the budget goes. The lower bound is the best step, or the
bound of the next plan.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.errors import InfeasibleError
from autopart.pricing import Decision, fits
from autopart.records.plan import SolverName
from autopart.search.incumbent import Incumbent, Outcome
from autopart.search.objectives import searched_objective
from autopart.search.phases import SHARE_OF_LOOK, SHARE_OF_START, Phase
from autopart.solvers.degree_cuts import best_path
from autopart.stage_degrees.bounds import DegreeBounds
from autopart.stage_degrees.completions import AllCompletions
from autopart.stage_degrees.least import least_step_of_degrees
from autopart.stage_degrees.open import (
    OpenPlan,
    OpenPlans,
    is_allowed,
    partition_at,
)
from autopart.stage_degrees.placement import placements
from autopart.stage_degrees.pricing import DegreesPricer
from autopart.stage_degrees.problem import DegreesProblem
from autopart.stopping.time_limit import check_time, passed
from autopart.text import counted

MOST_SIMULATED = 4000
"""The most plans that are priced to raise the lower bound; a check prices them again."""

MOST_IMPROVED = 3
"""The plans that are improved, of those with the smallest bounds."""

CUT_MOVES = (-1, 1, -2, 2)


class _Choice(NamedTuple):
    """A plan without its place on GPUs."""

    schedule: str
    replicas: int
    degrees: tuple[int, ...]
    path: tuple[int, ...]


class DegreesSearch:
    """The search for the fastest decision with a tensor degree per stage, at least two of them.

    Raises InfeasibleError where the demands leave no two stages.
    """

    def __init__(self, problem: DegreesProblem, solver: SolverName, beat: float = math.inf) -> None:
        self.problem, self.solver = problem, solver
        self.best = Incumbent(searched_objective(problem.of_gpus), solver, beat)
        self.quick_bound = least_step_of_degrees(problem)
        # Plans with one degree come first: they are found sooner, and are the value to beat.
        self.promise = math.inf
        if problem.of_gpus.demands.num_stages == 1 or len(problem.of_gpus.graph.layers) == 1:
            raise InfeasibleError("stages of different tensor degrees must be two at least")
        self.pricer = DegreesPricer(problem)
        self.bounds: DegreeBounds | None = None
        self.rest: AllCompletions | None = None
        self.open: OpenPlans | None = None
        self._priced: dict[_Choice, float] = {}
        """The step of each choice that was priced; infinite where it does not fit."""
        self._returned: list[float] = []
        """The bounds of the open plans that were priced in their order."""
        self._unpriced = math.inf
        """The bound of an open plan whose pricing ran out of time."""

    @property
    def phases(self) -> list[Phase]:
        """Eased bounds, proposals by their bounds, improvements, and all plans that bounds leave open."""
        return [
            Phase(SHARE_OF_LOOK, self._look),
            Phase(SHARE_OF_START, self._start),
            Phase(0.5, self._improve),
            Phase(1.0, self._close),
        ]

    @property
    def progress(self) -> str:
        """The part of the space that was searched, in words."""
        many = counted(len(self._priced), "plan was", "plans were")
        return f"{many} priced with several tensor degrees"

    def outcome(self) -> Outcome:
        """The best decision and the lower bound, from everything that is done so far."""
        proven = self.quick_bound
        if self.open is not None:
            proven = max(proven, min(self.open.bound, self._unpriced))
        proven = min(proven, self.best.value)
        simulated = sum(bound < proven for bound in self._returned)
        if proven <= self.quick_bound:
            simulated = 0
        return Outcome(self.best.decision, self.best.by, proven, simulated)

    def _look(self, _until: float) -> None:
        """Make the bounds."""
        self._prepare()

    def _prepare(self) -> DegreeBounds | None:
        """The bounds and the open plans; None where the graph has too many cuts."""
        if self.bounds is None:
            self.bounds = DegreeBounds(self.problem)
        if self.open is None and self.bounds.complete:
            self.rest = self.rest or AllCompletions(self.bounds)
            self.open = OpenPlans(self.rest)
        return self.bounds if self.bounds.complete else None

    def _start(self, until: float) -> None:
        """Price the first plan of each shape, in the order of their bounds."""
        bounds = self._prepare()
        every = self.rest
        if bounds is None or every is None or self.solver not in ("auto", "dp"):
            return
        for least, schedule, replicas in every.eased:
            if least >= self.best.value or passed(until):
                return
            rest = every.of(schedule, replicas)
            for stages in sorted(rest.counts, key=rest.least):
                if rest.least(stages) >= self.best.value or passed(until):
                    break
                first = OpenPlans(every, (rest, stages)).next_below(self.best.value)
                if first is not None:
                    self._price(_choice(first))

    def _improve(self, until: float) -> None:
        """Improve the best plans found so far, one step after the other."""
        if self._prepare() is None or self.solver not in ("auto", "dp"):
            return
        if not self._priced:
            self._start(until)
        starts = sorted(self._priced, key=self._priced.__getitem__)[:MOST_IMPROVED]
        for choice in starts:
            while not passed(until):
                better = self._better(choice, until)
                if better is None:
                    break
                choice = better

    def _better(self, choice: _Choice, until: float) -> _Choice | None:
        """The first neighbour with a shorter step."""
        own = self._priced[choice]
        for other in self._neighbours(choice):
            if passed(until):
                return None
            if other not in self._priced and self._price(other) < own:
                return other
        return None

    def _neighbours(self, choice: _Choice) -> Iterator[_Choice]:
        """Plans with other cuts, then with other degrees."""
        bounds = self.bounds
        assert bounds is not None
        last = len(bounds.cuts[0].nested) - 1
        for at, by in itertools.product(range(1, len(choice.path) - 1), CUT_MOVES):
            path = (*choice.path[:at], choice.path[at] + by, *choice.path[at + 1 :])
            if 0 < path[at] < last:
                yield choice._replace(path=path)
        for degrees in _other_degrees(choice.degrees, self.problem.degrees):
            if choice.replicas * sum(degrees) > bounds.gpus or len(degrees) > last:
                continue
            if self.problem.of_gpus.demands.num_stages not in (None, len(degrees)):
                continue
            found = best_path(bounds, choice.schedule, choice.replicas, degrees)
            if found is not None and found.bound < self.best.value:
                yield choice._replace(degrees=degrees, path=found.path)

    def _price(self, choice: _Choice) -> float:
        """Price a choice on each placement, and offer what fits; returns its shortest step."""
        check_time()
        bounds = self.bounds
        assert bounds is not None
        decisions: list[Decision] = []
        if is_allowed(bounds, choice.degrees, choice.path):
            decisions = [
                self.pricer.price(place, choice.schedule, partition_at(bounds, choice.path))
                for place in placements(bounds.gpus, choice.degrees, choice.replicas)
            ]
        able = [one for one in decisions if fits(self.problem.of_gpus, one)]
        for decision in able:
            self.best.offer(decision, "dp")
        step = min((one.prediction.step_time for one in able), default=math.inf)
        self._priced[choice] = step
        return step

    def _close(self, until: float) -> None:
        """Price the plans that bounds leave open, in their order."""
        if self._prepare() is None or self.open is None or self.solver not in ("auto", "dp"):
            return
        while len(self._returned) < MOST_SIMULATED and not passed(until):
            found = self.open.next_below(self.best.value)
            if found is None:
                return
            self._unpriced = min(self._unpriced, found.bound)
            if _choice(found) not in self._priced:
                self._price(_choice(found))
            self._unpriced = math.inf
            self._returned.append(found.bound)


def _choice(plan: OpenPlan) -> _Choice:
    return _Choice(plan.schedule, plan.replicas, plan.degrees, plan.path)


def _other_degrees(degrees: tuple[int, ...], able: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Degrees that differ by one stage, by two that change places, or by one stage more or less."""
    count = len(degrees)
    for at, degree in itertools.product(range(count), able):
        if degree != degrees[at]:
            yield (*degrees[:at], degree, *degrees[at + 1 :])
    for one, other in itertools.combinations(range(count), 2):
        if degrees[one] != degrees[other]:
            swapped = list(degrees)
            swapped[one], swapped[other] = degrees[other], degrees[one]
            yield tuple(swapped)
    for at in range(count):
        if count > 2:
            yield (*degrees[:at], *degrees[at + 1 :])
        for degree in able:
            yield (*degrees[:at], degree, *degrees[at:])
