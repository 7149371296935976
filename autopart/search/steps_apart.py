"""Layouts on their groups of ranks apart, where no assignment is faster: a quick rank among many.

autopart/bounds/rank_assignments.py says which groups. One search there takes a fraction of those on
all likely assignments.
"""

import math
from collections.abc import Sequence

from autopart.bounds.rank_assignments import fastest_assigned
from autopart.records.layouts import Layout
from autopart.search.layout_search import LayoutSearch


def step_apart(found: LayoutSearch, layouts: Sequence[Layout]) -> float:
    """The shortest step found on layouts with their groups of ranks apart; infinite without one."""
    step = math.inf
    for layout in layouts:
        problem, alone = fastest_assigned(found.problem, layout)
        search = LayoutSearch(problem, found.solver)
        search.deadline = found.deadline
        search.visit(alone)
        step = min(step, search.best.own_value)
    return step
