"""A plan's certificate: its lower bound, its gap, and the assumptions that both rest on."""

import math
from collections.abc import Sequence

from autopart.bounds.any_order_problem import any_order_bound
from autopart.bounds.glance import least_at_a_glance
from autopart.certificate.assumptions import assumptions
from autopart.records.plan import Certificate, SearchedSize
from autopart.records.problem import CUSTOM, Problem
from autopart.stage_degrees.least import least_step_of_degrees
from autopart.stage_degrees.problem import DegreesProblem


def certificate(
    problem: Problem,
    value: float,
    sizes: Sequence[SearchedSize],
    every_size: Sequence[Problem | DegreesProblem],
) -> Certificate:
    """The certificate for a plan whose objective is `value` seconds.

    `sizes` has the lower bound at each microbatch size that was searched. The smallest one counts.
    `every_size` has the problem at each of them.
    """
    bound = min(size.lower_bound for size in sizes if size.lower_bound is not None)
    return Certificate(
        lower_bound=bound,
        gap=gap_over(bound, value),
        simulated=sum(size.simulated for size in sizes),
        assumes=assumptions(problem, sizes),
        any_order_bound=_over_every_order(problem, bound, every_size),
    )


def gap_over(bound: float, value: float) -> float | None:
    """The gap of `value` seconds over a lower bound; None, for unknown, where the bound is 0.

    It is also None where the ratio exceeds every number.
    """
    gap = max(0.0, value / bound - 1) if bound > 0 else math.inf
    return gap if math.isfinite(gap) else None


def _over_every_order(
    problem: Problem, bound: float, every_size: Sequence[Problem | DegreesProblem]
) -> float:
    """Seconds that no order of actions can beat, at any size; at most the lower bound.

    Where every order is allowed, and for the bottleneck, which no order changes, it is the lower
    bound itself.
    """
    if CUSTOM in problem.demands.schedules or problem.objective == "bottleneck":
        return bound
    # The bound of a problem that says more at a glance changes nothing.
    least = bound
    for glance, problem_of_size in sorted(
        ((_glance(one), one) for one in every_size), key=lambda pair: pair[0]
    ):
        if glance < least:
            least = min(least, _any_order(problem_of_size))
    return least


def _glance(problem: Problem | DegreesProblem) -> float:
    if isinstance(problem, DegreesProblem):
        return 0.0
    return least_at_a_glance(problem, any_order=True)


def _any_order(problem: Problem | DegreesProblem) -> float:
    if isinstance(problem, DegreesProblem):
        return least_step_of_degrees(problem)
    return any_order_bound(problem)
