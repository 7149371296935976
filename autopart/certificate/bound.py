"""The check for a lower bound, without the search that found it.

It needs closed-form bounds (autopart/bounds/objectives.py), lists of the partitions that they leave
open, and the simulator. A bound holds where each layout either has bounds that reach it, or has all
its open partitions simulated.
"""

import itertools
import math

from autopart.bounds.glance import least_at_a_glance
from autopart.bounds.objectives import TOLERANCE, objective_of
from autopart.certificate.apart import may_be_faster_apart
from autopart.certificate.fastest_choices import least_steps
from autopart.cost.cuts import all_cuts, cuts_along
from autopart.errors import InfeasibleError, PlanError
from autopart.pricing import compile_layout
from autopart.records.layouts import Layout, Partition, shapes
from autopart.records.problem import CUSTOM, Problem

AT_ONCE = 4096
"""Partitions that are simulated side by side."""


def check_bound(problem: Problem, value: float, simulated: int) -> None:
    """Raise PlanError unless no plan of a problem has a smaller objective than `value` seconds.

    An infinite value says that there is no plan. The check must simulate exactly `simulated`
    partitions.
    """
    if not value >= 0:
        raise PlanError(f"a bound of {value} s is no number from 0 on")
    try:
        if not simulated and shapes(problem) and value <= least_at_a_glance(problem) < math.inf:
            return
        _check(problem, value, simulated)
    except InfeasibleError as error:
        # Of no plan at all every bound is true and says nothing. So only "no plan" may be claimed.
        if value < math.inf or simulated:
            raise PlanError(
                f"microbatches of {problem.microbatch_size} have no plan, and so no bound: {error}"
            ) from None


def check_own_bounds(problem: Problem, layout: Layout, partition: Partition, value: float) -> None:
    """Raise PlanError unless the bounds leave room for the plan itself, which takes `value` seconds.

    The plan is a witness against bounds that exclude a plan by mistake, such as a demand that they
    read more strictly. It costs little: only the plan's own cuts are looked at.
    """
    bounds = objective_of(problem).of_layout(problem, layout, cuts_along(problem.graph, partition))
    for stage, bound in enumerate(bounds.stages):
        least = max(float(bound[stage, stage + 1]), bounds.whole)
        if least > value * (1 + TOLERANCE):
            raise PlanError(
                f"stage {stage} alone has the bound {least} s, above the plan's {value} s"
            )


def _check(problem: Problem, value: float, expected: int) -> None:
    objective, cuts = objective_of(problem), all_cuts(problem.graph)
    if objective.attained and expected:
        raise PlanError(
            f"a bottleneck is proven without simulating, not with {expected} partitions"
        )
    least, simulated = value * (1 - TOLERANCE), 0
    # An attained bound is the value itself, added up in another order.
    limit = least if objective.attained else value
    for layout in objective.open_layouts(problem, cuts, limit, may_be_faster_apart):
        # Step 1: list the partitions that bounds leave open, but no more than the plan says.
        below = objective.of_layout(problem, layout, cuts).paths_below(limit)
        counts = [len(ranks) for ranks in layout.stage_ranks]
        # Step 2: simulate them, some at a time, so that a false bound is refused early.
        while paths := list(itertools.islice(below, min(AT_ONCE, expected - simulated + 1))):
            simulated += len(paths)
            if objective.attained:
                raise PlanError(
                    f"the bound {value} is not proven: stages of {counts} replicas have a smaller "
                    "bottleneck"
                )
            if layout.schedule == CUSTOM:
                # No list of partitions closes a layout with orders of its own.
                raise PlanError(
                    f"the bound {value} is not proven: on stages of {counts} replicas some order of "
                    "actions may be faster"
                )
            program = compile_layout(layout)
            fastest = min(least_steps(problem, layout, program, cuts, paths, limit))
            if simulated > expected or fastest < least:
                raise PlanError(
                    f"the bound {value} is not proven: on stages of {counts} replicas a plan takes "
                    f"{fastest} s, or more than {expected} need simulating"
                )
    if simulated != expected:
        raise PlanError(f"{expected} partitions should need simulating, found {simulated}")
