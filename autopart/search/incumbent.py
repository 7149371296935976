"""The best decision that a search has found so far, and the outcome of the search."""

from typing import NamedTuple

from autopart.pricing import Decision
from autopart.records.plan import SolverName
from autopart.search.objectives import SearchedObjective
from autopart.search.progress import tell

ROUNDING = 1e-12
"""Relative difference of two times that add the same numbers up in different orders."""


class Outcome(NamedTuple):
    """The best decision found, by which solver, and the lower bound of the problem."""

    best: Decision | None
    solver: SolverName
    lower_bound: float
    """Seconds that no decision can beat."""
    simulated: int
    """Partitions with all stage bounds below `lower_bound`: a check must simulate them."""


class Incumbent:
    """The best decision so far.

    Only decisions that take less than `beat` seconds are of interest.
    """

    def __init__(self, objective: SearchedObjective, solver: SolverName, beat: float) -> None:
        self.objective, self.beat = objective, beat
        self.decision: Decision | None = None
        self.by: SolverName = solver

    @property
    def value(self) -> float:
        """Seconds of the best decision so far, or the seconds to beat."""
        return min(self.beat, self.own_value)

    @property
    def own_value(self) -> float:
        """Seconds of the best decision so far; infinite without one."""
        return float("inf") if self.decision is None else self.objective.value(self.decision)

    def offer(self, decision: Decision, by: SolverName) -> None:
        """Keep a decision where it is better than the best so far."""
        if self.is_better(decision, self.decision):
            self.decision, self.by = decision, by
            tell(self.own_value)

    def is_better(self, decision: Decision, best: Decision | None) -> bool:
        """Whether a decision has a smaller value, or an equal value and a smaller second quantity.

        Values are equal where they differ only by the order in which floats were added up.
        """
        if best is None:
            return True
        value, least = self.objective.value(decision), self.objective.value(best)
        if abs(value - least) <= ROUNDING * least:
            second = self.objective.second(best) * (1 - ROUNDING)
            return self.objective.second(decision) < second
        return value < least
