"""The search over several microbatch sizes: one problem a size, and one incumbent for all.

The size with the smallest quick bound comes first. The best value so far prunes the shapes of the sizes
behind it, and a size as a whole whose quick bounds all reach it. Each size keeps a lower bound of its own:
nothing of that size is better; the smallest of them is the lower bound of all.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from autopart import replica_search, steady_search
from autopart.errors import InfeasibleError
from autopart.layout_bounds import quick_bounds
from autopart.layouts import shapes
from autopart.pricing import minimised
from autopart.problem import Problem
from autopart.replica_bounds import value_in_any_order
from autopart.search import Outcome, SolverName, search
from autopart.steady import shape_bottlenecks

NOTHING = float("inf")
"""The lower bound of a problem that has no plan."""


class SizeOutcomes(NamedTuple):
    """What the search found at each size."""

    outcomes: tuple[Outcome, ...]
    best: int | None
    """The size that has the best plan; None where no size has one."""


def search_sizes(problems: Sequence[Problem], solver: SolverName, deadline: float) -> SizeOutcomes:
    """Search problems that differ in their microbatch sizes.

    `deadline` is a reading of `time.perf_counter()`; each size may take an equal share of what is left.
    Raises InfeasibleError where the demands leave no shape at any size.
    """
    quick = [_quick_bound(problem) for problem in problems]
    if all(isinstance(bound, InfeasibleError) for bound in quick):
        raise next(bound for bound in quick if isinstance(bound, InfeasibleError))
    bounds = [NOTHING if isinstance(bound, InfeasibleError) else bound for bound in quick]
    order = sorted(range(len(problems)), key=bounds.__getitem__)
    outcomes = [Outcome(None, solver, NOTHING, 0)] * len(problems)
    least, best = NOTHING, None
    for done, at in enumerate(order):
        if bounds[at] >= least:
            outcomes[at] = Outcome(None, solver, least, 0)
            continue
        now = time.perf_counter()
        until = now + (deadline - now) / (len(order) - done)
        outcomes[at] = search_one(problems[at], solver, until, least)
        value = value_of(problems[at], outcomes[at])
        if value < least:
            least, best = value, at
    return SizeOutcomes(tuple(outcomes), best)


def search_one(
    problem: Problem, solver: SolverName, deadline: float, beat: float = NOTHING
) -> Outcome:
    """Search one problem for its objective; decisions that do not beat `beat` seconds may be missed,
    and the lower bound goes no further than that."""
    if problem.objective == "bottleneck":
        return steady_search.search(problem, solver, deadline, beat)
    if problem.demands.replicas_per_stage:
        found = replica_search.search(problem, solver, deadline)
        return found if found.best else found._replace(lower_bound=value_in_any_order(problem))
    return search(problem, solver, deadline, beat)


def value_of(problem: Problem, outcome: Outcome) -> float:
    """Seconds of what the problem minimises, for the best decision found; infinite where none was."""
    if outcome.best is None:
        return NOTHING
    return minimised(problem, outcome.best.prediction, outcome.best.layout.stage_ranks)


def _quick_bound(problem: Problem) -> float | InfeasibleError:
    """What no plan of the problem beats; why there is none where the demands leave no shape."""
    if problem.demands.replicas_per_stage:
        return 0.0
    try:
        allowed = shapes(problem)
    except InfeasibleError as error:
        return error
    quick = quick_bounds if problem.objective == "step" else shape_bottlenecks
    found = [bound for bound in quick(problem, allowed).values() if bound is not None]
    return min(found, default=NOTHING)
